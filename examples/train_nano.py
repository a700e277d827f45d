"""Two checkpoints to try things on: a small Llama and a small BERT, trained on the grammar of the suite `nano`.

    python examples/train_nano.py FOLDER        # writes FOLDER/causal and FOLDER/masked, half a minute on one core

The training text never holds a test sentence: what the models get right, they have generalised. Steps are counted,
not seconds, and everything is seeded, so that the same machine makes the same weights again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from antlm_bench.suites.grammar import corpus
from antlm_bench.suites.items import suite

SENTENCES, BATCH, RATE, SEED, NOT_A_TARGET = 40_000, 64, 4e-3, 1, -100
SPECIALS = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "mask_token": "<mask>", "unk_token": "<unk>"}
PAD, BOS, EOS, MASK, UNK = range(5)
STEPS = {"causal": 120, "masked": 600}  # a masked model learns from a quarter of the tokens that a causal one does


def train_tokenizer(text: Sequence[str], masked: bool) -> Any:
    """A byte-level BPE that writes `<s> text`, and for the masked model `<s> text </s>`."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        text, trainers.BpeTrainer(vocab_size=1000, show_progress=False, special_tokens=[*SPECIALS.values()])
    )
    template = "<s> $A </s>" if masked else "<s> $A"
    bpe.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", BOS), ("</s>", EOS)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, **SPECIALS, model_max_length=64)


def build(masked: bool, vocabulary: int) -> Any:
    """Two layers of 96, four heads: about 0.2M weights."""
    shape = {"vocab_size": vocabulary, "hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"intermediate_size": 384 if masked else 192, "max_position_embeddings": 64, "pad_token_id": PAD}
    if masked:
        rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return transformers.BertForMaskedLM(transformers.BertConfig(**shape, **rates))
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, bos_token_id=BOS, eos_token_id=EOS))


def batches(rows: torch.Tensor, masked: bool, steps: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(inputs, targets), each (BATCH, t). Masked: a quarter of the tokens is hidden and is all there is to predict."""
    dice = torch.Generator().manual_seed(SEED)
    for _ in range(steps):
        ids = rows[torch.randint(len(rows), (BATCH,), generator=dice)]
        ids = ids[:, : int((ids != PAD).sum(1).max())]
        if masked:
            hide = (torch.rand(ids.shape, generator=dice) < 0.25) & (ids > UNK)
            yield ids.masked_fill(hide, MASK), ids.masked_fill(~hide, NOT_A_TARGET)
        else:
            yield ids, ids.masked_fill(ids == PAD, NOT_A_TARGET)


def train(model: Any, rows: torch.Tensor, masked: bool, steps: int) -> None:
    """AdamW, 50 steps of warm-up, then a straight line to zero."""
    adam = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    for step, (inputs, targets) in enumerate(batches(rows, masked, steps)):
        adam.param_groups[0]["lr"] = RATE * min((step + 1) / 50, 1) * (1 - step / steps)
        model(input_ids=inputs, attention_mask=(inputs != PAD).long(), labels=targets).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad()


def main(folder: Path) -> None:
    torch.set_num_threads(1)  # models this small only wait for a second one
    transformers.utils.logging.disable_progress_bar()
    spec, _ = suite("nano")
    assert spec.grammar is not None
    text = list(corpus(spec.grammar, SENTENCES, SEED))
    for name, steps in STEPS.items():
        start, masked = time.monotonic(), name == "masked"
        torch.manual_seed(SEED)
        tokenizer = train_tokenizer(text, masked)
        model = build(masked, len(tokenizer))
        print(f"training {folder / name}: {model.num_parameters():,} weights, {steps} steps ...", end=" ", flush=True)
        train(model.train(), tokenizer(text, padding=True, return_tensors="pt").input_ids, masked, steps)
        model.eval().save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        print(f"{time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
