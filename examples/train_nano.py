"""Two checkpoints to try things on: a small Llama and a small BERT, trained on the grammar of the suite `nano`.

    python examples/train_nano.py FOLDER        # writes FOLDER/causal and FOLDER/masked, about a minute on two cores

The training text never holds a test sentence; what the models get right they have generalised.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from antlm_bench.suites.grammar import corpus

SENTENCES, SEED, SECONDS = 40_000, 1, 25.0
SPECIALS = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "mask_token": "<mask>", "unk_token": "<unk>"}
PAD, BOS, EOS, MASK, UNK = range(5)
NOT_A_TARGET = -100


def train_tokenizer(text: Sequence[str], ends: bool) -> PreTrainedTokenizerFast:
    """A byte-level BPE that writes `<s> text`, and `</s>` behind it for the masked model."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(text, trainers.BpeTrainer(vocab_size=1000, special_tokens=list(SPECIALS.values())))
    template = "<s> $A </s>" if ends else "<s> $A"
    bpe.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", BOS), ("</s>", EOS)])
    extra = {"cls_token": "<s>", "sep_token": "</s>"} if ends else {}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **SPECIALS, **extra, model_max_length=64)


def small_llama(words: int) -> Any:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=words,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=64,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
        )
    )


def small_bert(words: int) -> Any:
    return BertForMaskedLM(
        BertConfig(
            vocab_size=words,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=64,
            pad_token_id=PAD,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


def batches(rows: torch.Tensor, masked: bool, size: int = 256) -> Any:
    """Endless (inputs, targets) of (size, t). Masked: 20% of the tokens are hidden and are the only targets."""
    dice = torch.Generator().manual_seed(SEED)
    while True:
        for index in torch.randperm(len(rows), generator=dice).split(size):
            ids = rows[index]
            if not masked:
                yield ids, ids.masked_fill(ids == PAD, NOT_A_TARGET)
                continue
            hide = (torch.rand(ids.shape, generator=dice) < 0.2) & (ids > UNK)
            yield ids.masked_fill(hide, MASK), ids.masked_fill(~hide, NOT_A_TARGET)


def train(model: Any, rows: torch.Tensor, masked: bool, seconds: float) -> float:
    """Adam with a linear decay over a budget of time; returns the last loss in nats."""
    adam = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    start, loss = time.monotonic(), torch.zeros(())
    for inputs, targets in batches(rows, masked):
        spent = (time.monotonic() - start) / seconds
        if spent >= 1:
            break
        adam.param_groups[0]["lr"] = 2e-3 * min(20 * spent + 0.05, 1 - spent)
        loss = model(input_ids=inputs, attention_mask=(inputs != PAD).long(), labels=targets).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
    return float(loss)


def main(folder: Path) -> None:
    text = list(corpus("nano", SENTENCES, SEED))
    for name, masked, build in (("causal", False, small_llama), ("masked", True, small_bert)):
        torch.manual_seed(SEED)
        tokenizer = train_tokenizer(text, ends=masked)
        rows = tokenizer(text, padding=True, return_tensors="pt").input_ids
        model = build(len(tokenizer))
        print(
            f"training {name}: {model.num_parameters():,} weights, {len(text):,} sentences, {SECONDS:.0f} s ...",
            flush=True,
        )
        loss = train(model.train(), rows, masked, SECONDS)
        model.eval().save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        print(f"  loss {loss:.2f} nats; saved to {folder / name}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
