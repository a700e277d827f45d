"""Twenty steps of every shipped recipe, made tiny, against a plain loop in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name
from training_text import build_corpus, write_text

from antlm_bench.training.corpus import Corpus
from antlm_bench.training.model_factory import (
    build_model,
    compute_hidden_states,
    lm_head_parameters,
)
from antlm_bench.training.objectives import TrainingBatch
from antlm_bench.training.pretrain import RuntimeSettings, Trainer
from antlm_bench.training.recipe import Recipe, read_recipe
from antlm_bench.training.schedule import Step, plan_steps

NAMES = sorted(path.stem for path in Path(__file__).parents[2].joinpath("models").glob("*.toml"))
STEPS = 20


def tiny(name: str) -> Recipe:
    """The recipe with a tiny model on tiny batches; its laws are kept."""
    paper = read_recipe(name)
    phases = [
        (phase.epochs or phase.steps or 0, phase.causal, phase.masked) for phase in paper.phase
    ]
    total = sum(lasts for lasts, _, _ in phases)
    lasts = [round(STEPS * part / total) for part, _, _ in phases]
    lasts[-1] = STEPS - sum(lasts[:-1])
    shares = [(causal, masked) for _, causal, masked in phases]
    phase = ", ".join(
        f"{{steps={last}, causal={causal}, masked={masked}}}"
        for last, (causal, masked) in zip(lasts, shares, strict=True)
    )
    changes = [
        "model.layers=2", "model.hidden=16", "model.heads=2", "model.ffn=24", "model.positions=32",
        "model.dropout=0.0",
        "model.attention_dropout=0.0", "tokenizer.vocabulary=300", "batch.tokens=128",
        "batch.length=16",
        "batch.longer=[]", f"phase=[{phase}]", "optimizer.lr=3e-3",
    ]  # fmt: skip
    changes += ["model.buckets=8"] if paper.model.architecture in ("ltg-bert", "gpt-bert") else []
    changes += ["model.kv_heads=1"] if paper.model.kv_heads else []
    changes += ["batch.final_tokens=256"] if paper.batch.final_tokens else []
    changes += (
        ["optimizer.warmup_steps=3"] if paper.optimizer.warmup_steps else ["optimizer.warmup=0.1"]
    )
    changes += ["optimizer.cooldown=0.1"] if paper.optimizer.cooldown else []
    changes += ["optimizer.ema=0.9"] if paper.optimizer.ema else []
    return read_recipe(name, "", changes)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Any:
    text, created = write_text(tmp_path_factory.mktemp("laws") / "text", 240), {}

    def corpus(recipe: Recipe) -> Corpus:
        key = recipe.corpus.model_dump_json() + recipe.tokenizer.model_dump_json()
        if key not in created:
            created[key] = build_corpus(recipe, text, text.parent / str(len(created)))
        return created[key]

    return corpus


def in_float64(recipe: Recipe, corpus: Corpus) -> Trainer:
    small = {"layers": 1, "hidden": 16, "heads": 2, "ffn": 24}
    shape, teachers = read_recipe("gpt2-705m", "nano").model.model_copy(update=small), []
    for number, _ in enumerate(recipe.distil.teachers if recipe.distil else ()):
        torch.manual_seed(number + 1)
        teachers.append(build_model(shape, len(corpus.tokenizer), masked=False))
    training = Trainer(
        recipe, corpus, RuntimeSettings(device="cpu", micro_batch_tokens=64), teachers
    )
    training.model.double()
    for teacher in training.teachers:
        teacher.double()
    return training


def rate(recipe: Recipe, number: int) -> float:
    """The learning rate of a step, as the schedulers of the original code give it."""
    spec = recipe.optimizer
    warm = spec.warmup_steps if spec.warmup_steps is not None else int(spec.warmup * STEPS)  # type: ignore[operator]
    cool = int(spec.cooldown * STEPS)
    if number < warm:
        return spec.lr * number / warm
    if number >= STEPS - cool:
        return spec.lr * spec.final * (STEPS - number) / cool
    cosine = (1 + math.cos(math.pi * (number - warm) / (STEPS - warm))) / 2
    return spec.lr * (spec.final + (1 - spec.final) * cosine)


def decays(architecture: str, name: str, weight: Tensor) -> bool:
    """Whether weight decay acts on a parameter, by the rules of the original code."""
    if architecture in ("llama", "gpt2"):
        return weight.dim() > 1
    if architecture == "gpt-bert":
        return "bias" not in name and "norm" not in name
    return not any(part in name for part in ("bias", "norm", "embedding", "positions", "alpha"))


def logits_of(model: Any, batch: TrainingBatch) -> Tensor:
    weight, bias = lm_head_parameters(model)
    hidden = compute_hidden_states(model, batch)
    hidden = model.head.transform(hidden) if hasattr(model, "head") else hidden
    return hidden @ weight.t() + (0 if bias is None else bias)


def loss_of(
    model: Any, teachers: list[Any], recipe: Recipe, batches: list[TrainingBatch], step: Step
) -> Tensor:
    total: Any = 0.0
    for batch in batches:
        logits, targets = logits_of(model, batch), torch.from_numpy(batch.targets)
        has_target = targets >= 0
        loss = F.cross_entropy(logits[has_target], targets[has_target])
        loss = loss + recipe.objective.z_loss * logits[has_target].logsumexp(-1).square().mean()
        if recipe.distil:
            heat, alpha = recipe.distil.temperature, recipe.distil.alpha
            with torch.no_grad():
                taught = (
                    torch.stack([logits_of(teacher, batch) for teacher in teachers]).mean(0) / heat
                )
            divergence = F.kl_div(
                F.log_softmax(logits / heat, -1), F.softmax(taught, -1), reduction="batchmean"
            )
            loss = alpha * loss + (1 - alpha) * heat**2 * divergence
        share = (
            1.0
            if len(batches) == 1
            else step.loss_weights[0]
            if batch.causal
            else step.loss_weights[1]
        )
        total = total + share * loss
    return total


class PlainOptimizer:
    """AdamW (arXiv 1711.05101) or LAMB (arXiv 1904.00962) with clipping, one tensor at a time."""

    def __init__(self, recipe: Recipe, model: Any) -> None:
        self.recipe, self.weights = recipe, dict(model.named_parameters())
        self.mean = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}
        self.square = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}

    def step(self, number: int, slopes: dict[str, Tensor]) -> None:
        spec = self.recipe.optimizer
        norm = torch.sqrt(sum(slope.square().sum() for slope in slopes.values()))
        factor = spec.clip / (norm + 1e-6) if norm > spec.clip else 1.0
        lr, (one, two) = rate(self.recipe, number), spec.betas
        for name, slope in slopes.items():
            weight, slope = self.weights[name], slope * factor
            self.mean[name] = one * self.mean[name] + (1 - one) * slope
            self.square[name] = two * self.square[name] + (1 - two) * slope**2
            mean, square = (
                self.mean[name] / (1 - one ** (number + 1)),
                self.square[name] / (1 - two ** (number + 1)),
            )
            update = mean / (square.sqrt() + spec.eps)
            decayed = spec.weight_decay > 0 and decays(self.recipe.model.architecture, name, weight)
            if spec.name == "adamw":
                weight.data = weight.data * (1 - lr * spec.weight_decay * decayed) - lr * update
                continue
            update = update + spec.weight_decay * weight.data if decayed else update
            ratio = (
                weight.data.norm() / update.norm()
                if decayed and weight.data.norm() > 0 < update.norm()
                else 1.0
            )
            weight.data = weight.data - lr * ratio * update


def taken(training: Trainer) -> Iterator[tuple[Step, list[TrainingBatch]]]:
    """Every step with the batches that the trainer has just learned from."""
    seen: list[list[TrainingBatch]] = []
    original = training._make_batches

    def keep(step: Step, first: Any) -> list[TrainingBatch]:
        seen.append(original(step, first))
        return seen[-1]

    training._make_batches = keep  # type: ignore[method-assign]
    for step in plan_steps(training.recipe, len(training.corpus)):
        record = training.train_step(step)
        assert record["lr"] == pytest.approx(rate(training.recipe, step.index), abs=1e-15)
        yield step, seen[-1]


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_twenty_steps_are_those_of_a_plain_loop(name: str, corpora: Any) -> None:
    recipe = tiny(name)
    training = in_float64(recipe, corpora(recipe))
    plain = copy.deepcopy(training.model)
    initial = {name: weight.detach().clone() for name, weight in plain.named_parameters()}
    optimizer, average = (
        PlainOptimizer(recipe, plain),
        {name: weight.clone() for name, weight in initial.items()},
    )
    steps = 0
    for step, batches in taken(training):
        expected = {0.0: 0, 1.0: step.num_rows}.get(recipe.phase[step.phase].causal_share)
        assert expected is None or step.num_causal_rows == expected
        loss = loss_of(plain, training.teachers, recipe, batches, step)
        names = [*optimizer.weights]
        slopes = torch.autograd.grad(loss, [*optimizer.weights.values()], allow_unused=True)
        optimizer.step(
            step.index, {n: s for n, s in zip(names, slopes, strict=True) if s is not None}
        )
        for key, weight in plain.named_parameters():
            average[key] = (
                recipe.optimizer.ema * average[key] + (1 - recipe.optimizer.ema) * weight.detach()
            )
        steps += 1
    assert steps == STEPS
    ours = dict(training.model.named_parameters())
    for key, weight in plain.named_parameters():
        torch.testing.assert_close(ours[key], weight, rtol=0, atol=1e-6)
        if training.ema:
            torch.testing.assert_close(
                training.ema.average[key].double(), average[key], rtol=0, atol=1e-6
            )
    moved = max(float((ours[key] - weight).detach().abs().max()) for key, weight in initial.items())
    assert moved > 1e-3
