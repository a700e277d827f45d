"""Texts of many scripts, and small tokenizers of every kind that are trained on them."""

from __future__ import annotations

import json
from typing import Any

import small_tokenizers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

# Pieces of text in NFC. Texts that are joined from them have words, marks and white space at
# every kind of border.
PIECES = [
    "the cat", "naïve", "don't", "Ελληνικά", "русский", "中文我喜欢", "苹果。", "猫が魚を",
    "コーヒー", "한국어", "नमस्ते", "हिन्दी में", "क्ष", "שָׁלוֹם", "עברית", "مرحبا", "می‌خواهم",
    "แมวกินปลา", "น้ำ", "ខ្ញុំ\u200bស្រឡាញ់", "Việt", "👩‍👩‍👧", "🇩🇪🇫🇷", "☕️", "3", ".", ",", "？",
]  # fmt: skip
SPACES = [" ", "  ", "\u00a0", "\u3000", "\n", "\u200b"]


def train_byte_level() -> Any:
    """Train a byte-level BPE whose tokens may end inside a character, or span several."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = list(small_tokenizers.BYTES)
    return _train(tokenizer, trainers.BpeTrainer, 400, initial_alphabet=alphabet)


def train_word_piece() -> Any:
    """Train an uncased BERT tokenizer, which strips accents and splits Chinese characters."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _train(tokenizer, trainers.WordPieceTrainer, 300)


def train_unigram() -> Any:
    """Train a Unigram tokenizer with a dummy prefix and normalization, as XLM-RoBERTa's."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return _train(tokenizer, trainers.UnigramTrainer, 300, unk_token="<unk>")


def build_byte_fallback() -> Any:
    """Build a tokenizer as Llama 2's: a dummy prefix, and bytes for unknown characters."""
    trained = _train(_prefixed(models.BPE()), trainers.BpeTrainer, 200).backend_tokenizer
    merged = json.loads(trained.to_str())["model"]
    kept = [token for token in merged["vocab"] if not set(token) & set("中我猫नש👩")]
    tokens = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), *kept[2:]]
    merges = [tuple(merge) for merge in merged["merges"] if {*merge, "".join(merge)} <= set(kept)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    model = models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    return small_tokenizers.wrap_tokenizer(_prefixed(model), unk_token="<unk>", bos_token="<s>")


def _prefixed(model: Any) -> Tokenizer:
    tokenizer = Tokenizer(model)
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    return tokenizer


def _train(tokenizer: Tokenizer, trainer: Any, size: int, **options: Any) -> Any:
    settings = {
        "vocab_size": size,
        "special_tokens": ["<unk>", "<s>"],
        "show_progress": False,
        **options,
    }
    tokenizer.train_from_iterator([*PIECES, " ".join(PIECES)] * 5, trainer(**settings))
    return small_tokenizers.wrap_tokenizer(tokenizer, unk_token="<unk>", bos_token="<s>")


TOKENIZERS = {
    "byte-level": train_byte_level(),
    "word-piece": train_word_piece(),
    "unigram": train_unigram(),
    "byte-fallback": build_byte_fallback(),
}
