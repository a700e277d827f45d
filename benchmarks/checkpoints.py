"""Makes the two checkpoints that the benchmarks score: a 58M Llama and a 24M BERT shape, trained a
little on real text.

    python benchmarks/checkpoints.py .bench --steps 400 [causal] [masked]

Speed does not care about the weights, but `--precision adaptive` does: a random model's margins are
all near zero, so that ratios measured on it would say nothing. A plain loop, good for a benchmark
and not for science.
"""

from __future__ import annotations

import argparse
import gzip
import math
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from antlm_bench.cpu_tuning import keep_freed_memory

VOCABULARY, LENGTH, BATCH = 16_000, 128, 16
RATE = {
    "causal": 1e-3,
    "masked": 2e-4,
}  # at 1e-3, with dropout, BERT learnt nothing but word frequencies
MASKED = 0.3  # of the tokens; with BERT's 15% too few are learnt from in so few steps
NEIGHBOURS = (-1, 1, -2, 2, -3, 3)  # where the heads of BERT's first layers look at the start


def lines(corpus: Path) -> list[str]:
    """Every line of the training text, in file order."""
    texts = []
    for file in sorted(corpus.glob("train/*.txt.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as handle:
            texts += handle.read().splitlines()
    return texts


def tokenizer_for(kind: str, texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE that adds <s> (causal) or <s> ... </s> (masked), trained on a sample of the
    text.
    """
    specials = ["<pad>", "<s>", "</s>", "<mask>", "<unk>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(random.Random(0).sample(texts, min(len(texts), 200_000)), trainer)
    template = "<s> $A" if kind == "causal" else "<s> $A </s>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template,
        special_tokens=[("<s>", 1), ("</s>", 2)] if kind == "masked" else [("<s>", 1)],
    )
    names = {"pad": "<pad>", "bos": "<s>", "eos": "</s>", "mask": "<mask>", "unk": "<unk>"}
    if kind == "masked":
        names |= {"cls": "<s>", "sep": "</s>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{f"{k}_token": v for k, v in names.items()}
    )


def shape(kind: str) -> LlamaForCausalLM | BertForMaskedLM:
    """The shapes of the issue: babyllama (16 x 512, 8 heads, FFN 1024) and BERT (12 x 384, 6 heads,
    FFN 1280).
    """
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "causal":
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=512, num_hidden_layers=16, num_attention_heads=8,
            intermediate_size=1024, max_position_embeddings=256, tie_word_embeddings=False, **ids,
        )  # fmt: skip
        return LlamaForCausalLM(config)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=384, num_hidden_layers=12, num_attention_heads=6,
        intermediate_size=1280, max_position_embeddings=256, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        **ids,
    )  # fmt: skip
    model = BertForMaskedLM(config)
    with torch.no_grad():
        look_around(model, layers=4)
    return model


def look_around(model: BertForMaskedLM, layers: int) -> None:
    """Start each head of the first layers as one that copies the neighbour at its offset.

    The first layer then gives it 95% of its attention; later ones less, for what was copied covers
    the places. With the angles a_i = i w of position i, (cos, sin) in the first dimensions of its
    embedding, a key of those and a query turned by the offset o make attention's score sum_w cos((i
    + o - j) w): highest where j = i + o.
    """
    config = model.config
    size, half = (
        config.hidden_size // config.num_attention_heads,
        config.hidden_size // config.num_attention_heads // 2,
    )
    turns = math.pi * (torch.arange(half) + 0.5) / half
    angles = torch.arange(config.max_position_embeddings)[:, None] * turns
    places = model.bert.embeddings.position_embeddings.weight.zero_()
    places[:, :size] = 0.05 * torch.cat([angles.cos(), angles.sin()], 1)
    for layer in model.bert.encoder.layer[:layers]:
        attention = layer.attention.self
        for linear in (attention.query, attention.key):
            linear.weight.zero_()
        for head, offset in enumerate(NEIGHBOURS):
            rows = slice(head * size, (head + 1) * size)
            cos, sin = torch.diag((turns * offset).cos()), torch.diag((turns * offset).sin())
            attention.key.weight[rows, :size] = 0.9 * torch.eye(size)
            attention.query.weight[rows, :size] = 0.9 * torch.cat(
                [torch.cat([cos, -sin], 1), torch.cat([sin, cos], 1)]
            )
        torch.nn.init.orthogonal_(attention.value.weight)
        layer.attention.output.dense.weight.copy_(0.7 * attention.value.weight.T)


def batches(
    kind: str, texts: list[str], tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (inputs, labels), each (BATCH, LENGTH) ids; rows start a line with its specials and
    are cut at LENGTH.
    """
    shuffle = random.Random(1)
    generator = torch.Generator().manual_seed(2)
    while True:
        order = list(range(len(texts)))
        shuffle.shuffle(order)
        stream: list[int] = []
        for start in range(0, len(order), 4096):
            for ids in tokenizer([texts[i] for i in order[start : start + 4096]])["input_ids"]:
                stream += ids
            size = BATCH * LENGTH
            while len(stream) >= size:
                inputs = torch.tensor(stream[:size]).view(BATCH, LENGTH)
                stream = stream[size:]
                if kind == "causal":
                    yield inputs, inputs
                    continue
                hidden = (torch.rand(inputs.shape, generator=generator) < MASKED) & (inputs > 4)
                yield inputs.masked_fill(hidden, 3), inputs.masked_fill(~hidden, -100)


def loss_of(
    model: LlamaForCausalLM | BertForMaskedLM, inputs: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """The library's own loss; of a masked model, whose targets are few, with the LM head at the
    targets alone.
    """
    if isinstance(model, LlamaForCausalLM):
        return model(input_ids=inputs, labels=labels).loss
    wanted = labels != -100
    logits = model.cls(model.bert(input_ids=inputs)[0][wanted])
    return torch.nn.functional.cross_entropy(logits.float(), labels[wanted])


def train(kind: str, texts: list[str], out: Path, steps: int) -> None:
    """AdamW with warm-up and cosine, products in bf16, weights in fp32; saved as safetensors."""
    torch.manual_seed(0)
    # else much of a step goes into pages that are given back and asked for again
    keep_freed_memory()
    tokenizer, model = tokenizer_for(kind, texts), shape(kind)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=RATE[kind], betas=(0.9, 0.98), weight_decay=0.1, fused=True
    )
    start = time.monotonic()
    for step, (inputs, labels) in zip(range(steps), batches(kind, texts, tokenizer), strict=False):
        rate = (
            RATE[kind] * min(1.0, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        )
        optimizer.param_groups[0]["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, inputs, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 20 == 0:
            print(
                f"{kind}: step {step} of {steps}, loss {loss.item():.3f}, {time.monotonic() - start:.0f} s",
                flush=True,
            )
    model.eval().save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("kinds", nargs="*", default=["causal", "masked"])
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    corpus = Path(os.environ.get("ANTLM_BENCH_DATA", "../shared/data")) / "corpus"
    for chosen in arguments.kinds:
        train(chosen, lines(corpus), arguments.folder / chosen, arguments.steps)
