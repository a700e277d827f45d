"""A tokenizer and random models that are small enough for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

WORD_LIST = """
the a cat cats dog dogs sees see sleeps sleep who what which never ever no every some has have seen
not himself herself themselves boy girl boys girls that near old small house houses
"""
WORDS = WORD_LIST.split()


def train_tokenizer(kind: str, adds: bool, mask: bool = True):
    """Train a byte-level BPE on WORDS.

    `adds`: it adds <s> (causal) or <s> ... </s> (masked) to a text. `mask`: it has a mask token.
    """
    names = {"bos_token": "<s>"}
    if mask:
        names["mask_token"] = "<mask>"
    if kind == "masked":
        names |= {"cls_token": "<s>", "sep_token": "</s>"}
    template = "<s> $A" if kind == "causal" else "<s> $A </s>"
    return train_byte_level(["<mask>", "<unk>"], template if adds else "", names)


def train_byte_level(added: Sequence[str], template: str, names: Mapping[str, str]):
    """Train a byte-level BPE of 400 tokens on WORDS, of which <pad>, <s> and </s> are the first.

    added: the special tokens that follow, <unk> among them. template: special tokens and $A, the
    text; "" = none. names: names of special tokens in transformers, besides pad, eos and unk.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>", *added],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    if template:
        specials = {"<s>", "</s>", *template.split()} - {"$A"}
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template,
            special_tokens=[(name, tokenizer.token_to_id(name)) for name in sorted(specials)],
        )
    common = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **common, **names)


def build_model(kind: str, seed: int, architecture: str = "", **config: object):
    """Build a random transformers model: Llama or BERT, or the class named by `architecture`."""
    import torch
    import transformers

    name = architecture or {"causal": "LlamaForCausalLM", "masked": "BertForMaskedLM"}[kind]
    model_class = getattr(transformers, name)
    settings = {
        "vocab_size": 400,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    torch.manual_seed(seed)
    model = model_class(model_class.config_class(**(settings | config)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model.eval()
