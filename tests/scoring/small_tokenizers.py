"""Small tokenizers of every kind, trained on a few sentences, regular and troublesome ones."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = ["the cat sat on the mat .", "a cat, of the dog; of the house", "The dog can't sit."] * 9
BYTES = pre_tokenizers.ByteLevel.alphabet()


def wrap_tokenizer(tokenizer: Tokenizer, **names: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def train_bpe(
    pre: Any = None,
    normalizer: Any = None,
    *,
    alphabet: Any = (),
    size: int = 90,
    unk: str | None = None,
) -> Any:
    """Train a BPE tokenizer with special tokens <pad> 0, <s> 1, </s> 2, <mask> 3."""
    tokenizer = Tokenizer(models.BPE(unk_token=unk))
    if pre is not None:
        tokenizer.pre_tokenizer = pre
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    specials = ["<pad>", "<s>", "</s>", "<mask>", *([unk] if unk else [])]
    trainer = trainers.BpeTrainer(
        vocab_size=size + len(alphabet),
        special_tokens=specials,
        initial_alphabet=list(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "mask_token": "<mask>"}
    return wrap_tokenizer(tokenizer, **names, **({"unk_token": unk} if unk else {}))


def train_byte_level(split: bool = True, prefix: bool = False, alphabet: Any = BYTES) -> Any:
    return train_bpe(
        pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=split), alphabet=alphabet
    )


def train_metaspace(split: bool = True, unk: str | None = None) -> Any:
    return train_bpe(pre_tokenizers.Metaspace(split=split), unk=unk)


def train_gemma_like(unk: str | None = None) -> Any:
    """Train a tokenizer that replaces spaces in a normalizer and has no pre-tokenizer."""
    return train_bpe(None, normalizers.Replace(" ", "▁"), unk=unk)


def train_superword() -> Any:
    """Train a tokenizer whose tokens may span words up to a full stop."""
    return train_bpe(pre_tokenizers.Split(".", "isolated"), size=140)


def build_word_level(unk: str | None = None, words: Any = None) -> Any:
    words = (
        sorted({word for text in TEXTS for word in text.split()}) if words is None else list(words)
    )
    vocabulary = {word: n for n, word in enumerate([*([unk] if unk else []), "<s>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unk or "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return wrap_tokenizer(tokenizer, bos_token="<s>", **({"unk_token": unk} if unk else {}))


def train_word_piece(unk: str = "[UNK]") -> Any:
    tokenizer = Tokenizer(models.WordPiece(unk_token=unk))
    tokenizer.normalizer, tokenizer.pre_tokenizer = (
        normalizers.BertNormalizer(),
        pre_tokenizers.BertPreTokenizer(),
    )
    trainer = trainers.WordPieceTrainer(
        vocab_size=90, special_tokens=["[PAD]", unk], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return wrap_tokenizer(tokenizer, unk_token=unk, pad_token="[PAD]")


def build_unigram(unk: bool = True, split: bool = True) -> Any:
    characters = sorted({character for text in TEXTS for character in text if character != " "})
    pieces = [
        ("<unk>", 0.0),
        ("▁", -2.0),
        *((c, -3.0) for c in characters),
        ("▁the", -1.0),
        ("▁cat", -1.5),
    ]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0 if unk else None))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=split)
    return wrap_tokenizer(tokenizer)
