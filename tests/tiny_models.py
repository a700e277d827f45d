"""A tokenizer and random models that are small enough for tests."""

from __future__ import annotations

WORD_LIST = """
the a cat cats dog dogs sees see sleeps sleep who what which never ever no every some has have seen
not himself herself themselves boy girl boys girls that near old small house houses
"""
WORDS = WORD_LIST.split()


def train_tokenizer(kind: str, adds: bool, mask: bool = True):
    """Train a byte-level BPE on WORDS.

    `adds`: it adds <s> (causal) or <s> ... </s> (masked) to a text. `mask`: it has a mask token.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<pad>", "<s>", "</s>", "<mask>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    if adds:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A" if kind == "causal" else "<s> $A </s>",
            special_tokens=[("<s>", 1), ("</s>", 2)],
        )
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if mask:
        names["mask_token"] = "<mask>"
    if kind == "masked":
        names |= {"cls_token": "<s>", "sep_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


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
