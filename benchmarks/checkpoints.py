"""Train the two checkpoints that the benchmarks score: a 58M Llama and a 24M BERT.

    python benchmarks/checkpoints.py .bench [causal] [masked] --steps 400

The speed of exact scoring does not depend on the weights, but that of `--precision adaptive` does:
the log-probability gaps of a random model are all near zero. The loop is made for benchmarks only.
"""

from __future__ import annotations

import argparse
import gzip
import math
import os
import random
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

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
# At 1e-3, with dropout, BERT learns only word frequencies.
RATE = {"causal": 1e-3, "masked": 2e-4}
MASKED = 0.3  # of the tokens; 15%, as of BERT, are too few for so few steps
SIZES: Mapping[str, int] = MappingProxyType({})  # no other sizes than those of `build_model`
NEIGHBOURS = (-1, 1, -2, 2, -3, 3)  # offsets that the heads of BERT's first layers start with


def read_lines(corpus: Path) -> list[str]:
    """Read every line of the training text, in file order."""
    texts = []
    for file in sorted(corpus.glob("train/*.txt.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as handle:
            texts += handle.read().splitlines()
    return texts


def train_tokenizer(kind: str, texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE that adds <s> (causal) or <s> ... </s> (masked)."""
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


def build_model(kind: str, sizes: Mapping[str, int] = SIZES) -> LlamaForCausalLM | BertForMaskedLM:
    """Build babyllama (16 x 512, 8 heads, FFN 1024) or a BERT (12 x 384, 6 heads, FFN 1280).

    sizes: fields of the configuration that replace these sizes. Such a BERT gets no initial
    attention to neighbours.
    """
    common = {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if kind == "causal":
        llama_sizes = {
            "hidden_size": 512,
            "num_hidden_layers": 16,
            "num_attention_heads": 8,
            "intermediate_size": 1024,
        }
        config = LlamaConfig(tie_word_embeddings=False, **{**common, **llama_sizes, **sizes})
        return LlamaForCausalLM(config)
    bert_sizes = {
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "intermediate_size": 1280,
    }
    config = BertConfig(
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **{**common, **bert_sizes, **sizes},
    )
    model = BertForMaskedLM(config)
    if sizes:
        return model
    with torch.no_grad():
        initialize_neighbour_attention(model, layers=4)
    return model


def initialize_neighbour_attention(model: BertForMaskedLM, layers: int) -> None:
    """Initialize each head of the first layers to copy the neighbour at its offset.

    In the first layer the neighbour gets 95% of the attention, in later ones less, since the copied
    vectors cover the positions. With angles a_i = i w of position i as (cos, sin) in the first
    dimensions of its embedding, a key of those and a query rotated by the offset o give the score
    sum_w cos((i + o - j) w), which is highest at j = i + o.
    """
    config = model.config
    size = config.hidden_size // config.num_attention_heads
    half = size // 2
    frequencies = math.pi * (torch.arange(half) + 0.5) / half
    angles = torch.arange(config.max_position_embeddings)[:, None] * frequencies
    positions = model.bert.embeddings.position_embeddings.weight.zero_()
    positions[:, :size] = 0.05 * torch.cat([angles.cos(), angles.sin()], 1)
    for layer in model.bert.encoder.layer[:layers]:
        attention = layer.attention.self
        for linear in (attention.query, attention.key):
            linear.weight.zero_()
        for head, offset in enumerate(NEIGHBOURS):
            rows = slice(head * size, (head + 1) * size)
            angle = frequencies * offset
            cos, sin = torch.diag(angle.cos()), torch.diag(angle.sin())
            attention.key.weight[rows, :size] = 0.9 * torch.eye(size)
            attention.query.weight[rows, :size] = 0.9 * torch.cat(
                [torch.cat([cos, -sin], 1), torch.cat([sin, cos], 1)]
            )
        torch.nn.init.orthogonal_(attention.value.weight)
        layer.attention.output.dense.weight.copy_(0.7 * attention.value.weight.T)


def iter_batches(
    kind: str, texts: list[str], tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (inputs, labels) without end, each (BATCH, LENGTH) ids of the concatenated lines."""
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
                masked = (torch.rand(inputs.shape, generator=generator) < MASKED) & (inputs > 4)
                yield inputs.masked_fill(masked, 3), inputs.masked_fill(~masked, -100)


def compute_loss(
    model: LlamaForCausalLM | BertForMaskedLM, inputs: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Return the loss; a masked model runs the LM head at its targets only."""
    if isinstance(model, LlamaForCausalLM):
        return model(input_ids=inputs, labels=labels).loss
    is_target = labels != -100
    logits = model.cls(model.bert(input_ids=inputs)[0][is_target])
    return torch.nn.functional.cross_entropy(logits.float(), labels[is_target])


def train(kind: str, texts: list[str], out: Path, steps: int) -> None:
    """Train with AdamW, warm-up and cosine decay (bf16 products, fp32 weights) and save."""
    torch.manual_seed(0)
    keep_freed_memory()  # else returning and requesting pages takes much of a step
    tokenizer, model = train_tokenizer(kind, texts), build_model(kind)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=RATE[kind], betas=(0.9, 0.98), weight_decay=0.1, fused=True
    )
    start = time.monotonic()
    for step, (inputs, labels) in zip(
        range(steps), iter_batches(kind, texts, tokenizer), strict=False
    ):
        rate = (
            RATE[kind] * min(1.0, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        )
        optimizer.param_groups[0]["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16):
            loss = compute_loss(model, inputs, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 20 == 0:
            seconds = time.monotonic() - start
            line = f"{kind}: step {step} of {steps}, loss {loss.item():.3f}, {seconds:.0f} s"
            print(line, flush=True)
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
        train(chosen, read_lines(corpus), arguments.folder / chosen, arguments.steps)
