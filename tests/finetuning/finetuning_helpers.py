"""Tasks that a tiny model can or cannot learn, and backbones for them."""

from __future__ import annotations

import random
from types import SimpleNamespace

from tiny_models import WORDS, train_tokenizer

from antlm_bench.checkpoints import Backbone
from antlm_bench.scoring.text import build_specials
from antlm_bench.suites.classification import TrainingSpec
from antlm_bench.types import Example

TRAINING_SETTINGS = {
    "lr": 1e-3,
    "batch": 16,
    "epochs": 5,
    "patience": 0,
    "warmup": 0.1,
    "schedule": "linear",
    "weight_decay": 0.01,
    "clip": 1.0,
    "dropout": 0.1,
    "max_length": 40,
}


def make_example(number: int, law: str = "word", pairs: bool = True) -> Example:
    """Make an example; `law`: the class says whether a word occurs, occurs second, or is random."""
    rng = random.Random(number)
    gold = rng.randrange(2)
    first, second = (rng.choices(WORDS[:10], k=rng.randint(2, 9)) for _ in range(2))
    marked = second if law == "second" else first
    if law != "coin" and gold:
        marked[rng.randrange(len(marked))] = "himself"
    elif law == "second":
        first[rng.randrange(len(first))] = "himself"
    second = second if law == "second" or (pairs and number % 3) else []
    return Example(f"e{number}", " ".join(first), " ".join(second), gold)


def make_task(
    train: int = 300,
    valid: int = 80,
    law: str = "word",
    select: str = "held-out",
    **training: object,
):
    """Make a task with the fields of suites.classification_loader.ClassificationTask."""
    examples = [make_example(number, law) for number in range(train + valid)]
    return SimpleNamespace(
        suite="toy", name=law, full_name=f"toy.{law}", metric="accuracy", classes=("no", "yes"),
        train=tuple(examples[:train]), valid=tuple(examples[train:]), select=select, held_out=0.1,
        training=TrainingSpec(**(TRAINING_SETTINGS | training)),
    )  # fmt: skip


def make_backbone(
    model, kind: str, *, adds: bool = True, max_length: int | None = 64, both: bool = False
) -> Backbone:
    """Make a Backbone of any model with the vocabulary of `tiny_models.train_tokenizer`."""
    tokenizer = train_tokenizer(kind, adds)
    if kind == "masked":  # BERT's own names them, too
        tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    own_attention = "causal" if kind == "causal" else "full"
    attentions = frozenset({"causal", "full"} if both else {own_attention})
    specials = {a: build_specials(tokenizer, a, "auto") for a in sorted(attentions)}
    return Backbone(
        "toy",
        kind,
        attentions,
        own_attention,
        model.base_model,
        tokenizer,
        specials,
        max_length,
        (),
        {},
    )
