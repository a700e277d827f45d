"""Tiny random encoder-decoders with tokenizers that have their special tokens."""

from __future__ import annotations

from pathlib import Path

from tiny_models import train_byte_level

MODELS = ("t5", "mt5", "byt5", "bart", "mbart", "pegasus")


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
    sentinels = ["<unk>", "<extra_id_0>", "<extra_id_1>"]
    with_mask, names = ["<unk>", "<mask>"], {"mask_token": "<mask>", "bos_token": "<s>"}
    class_name, settings, tokenizer_arguments = {
        "t5": ("T5ForConditionalGeneration", t5, (sentinels, "$A </s>", {})),
        "mt5": ("MT5ForConditionalGeneration", gated, (sentinels, "$A </s>", {})),
        "byt5": ("T5ForConditionalGeneration", gated | {"vocab_size": 384, "eos_token_id": 1}, ()),
        "bart": ("BartForConditionalGeneration", bart, (with_mask, "<s> $A </s>", names)),
        "mbart": (
            "MBartForConditionalGeneration", bart, ([*with_mask, "en_XX"], "$A </s> en_XX", names),
        ),
        "pegasus": ("PegasusForConditionalGeneration", pegasus, (["<unk>"], "$A </s>", {})),
    }[name]  # fmt: skip
    model_class = getattr(transformers, class_name)
    torch.manual_seed(7)
    model = model_class(model_class.config_class(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    model.save_pretrained(folder)
    tokenizer = (
        train_byte_level(*tokenizer_arguments)
        if tokenizer_arguments
        else transformers.ByT5Tokenizer()
    )
    tokenizer.save_pretrained(folder)
    return folder
