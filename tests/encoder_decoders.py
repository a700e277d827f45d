"""Tiny random encoder-decoders with tokenizers that have their special tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tiny_models import WORDS

MODELS = ("t5", "mt5", "byt5", "bart", "mbart", "pegasus")


def train_pair_tokenizer(before: Sequence[str], after: Sequence[str], added: Sequence[str]):
    """Train a byte-level BPE with the template `before` text `after` and `added` special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>", "<unk>", *added],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join([*before, "$A", *after]),
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in {*before, *after}],
    )
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    if "<mask>" in added:
        names |= {"mask_token": "<mask>", "bos_token": "<s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def save_encoder_decoder(name: str, folder: Path) -> Path:
    """Save one of MODELS, with large random weights."""
    import torch
    import transformers

    t5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    t5 |= {"vocab_size": 400, "decoder_start_token_id": 0, "eos_token_id": 2, "dropout_rate": 0.0}
    gated = t5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    bart = {f"{part}_{key}": value for part in ("encoder", "decoder") for key, value in
            {"layers": 2, "attention_heads": 4, "ffn_dim": 48}.items()}  # fmt: skip
    bart |= {"vocab_size": 400, "d_model": 32, "max_position_embeddings": 64, "pad_token_id": 0,
             "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}  # fmt: skip
    pegasus = bart | {"decoder_start_token_id": 0}
    sentinels = ["<extra_id_0>", "<extra_id_1>"]
    class_name, settings, template = {
        "t5": ("T5ForConditionalGeneration", t5, ([], ["</s>"], sentinels)),
        "mt5": ("MT5ForConditionalGeneration", gated, ([], ["</s>"], sentinels)),
        "byt5": ("T5ForConditionalGeneration", gated | {"vocab_size": 384, "eos_token_id": 1}, ()),
        "bart": ("BartForConditionalGeneration", bart, (["<s>"], ["</s>"], ["<mask>"])),
        "mbart": (
            "MBartForConditionalGeneration", bart, ([], ["</s>", "en_XX"], ["<mask>", "en_XX"]),
        ),
        "pegasus": ("PegasusForConditionalGeneration", pegasus, ([], ["</s>"], ())),
    }[name]  # fmt: skip
    model_class = getattr(transformers, class_name)
    torch.manual_seed(7)
    model = model_class(model_class.config_class(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    model.save_pretrained(folder)
    tokenizer = train_pair_tokenizer(*template) if template else transformers.ByT5Tokenizer()
    tokenizer.save_pretrained(folder)
    return folder
