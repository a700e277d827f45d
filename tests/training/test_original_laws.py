"""Training against records of the authors' code: losses, gradients, decay, steps, streams."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from original_names import convert_weight_name
from recipe_helpers import make_phases, make_recipe
from safetensors.torch import load_file
from tokenizers import Tokenizer, pre_tokenizers
from training_text import build_corpus, write_text

from antlm_bench.architectures import gpt_bert, ltg_bert
from antlm_bench.training import optim
from antlm_bench.training.corpus import _tokenizer_training_lines, encode_file, train_tokenizer
from antlm_bench.training.losses import DistillationTargets, LazyLogits, sliced_cross_entropy
from antlm_bench.training.model_factory import build_model
from antlm_bench.training.objectives import TrainingBatch
from antlm_bench.training.optim import Lamb, build_param_groups
from antlm_bench.training.pretrain import RuntimeSettings, Trainer
from antlm_bench.training.recipe import CorpusSpec, ModelSpec, Recipe, TokenizerSpec, read_recipe
from antlm_bench.training.schedule import count_rows, plan_steps
from antlm_bench.training.text_sources import load_text_source

SHAPE = {
    "layers": 2,
    "hidden": 16,
    "heads": 2,
    "ffn": 24,
    "positions": 32,
    "buckets": 8,
    "tied": True,
}
VOCABULARY = 60


@pytest.fixture(scope="module")
def training_cases(cases_root: Path) -> Path:
    return cases_root / "original" / "training"


def read(cases: Path, name: str) -> Any:
    return json.loads((cases / f"{name}.json").read_text(encoding="utf-8"))


def test_distillation_is_the_authors(training_cases: Path) -> None:
    """Loss, gradient and its parts, for the law that is the default of both recipes."""
    tensors = load_file(training_cases / "distillation.safetensors")
    many, length, vocabulary = tensors["student_logits"].shape
    one = torch.eye(vocabulary, dtype=torch.float64)
    flat = {name: x.double().flatten(0, 1) for name, x in tensors.items() if "logits" in name}
    cases = read(training_cases, "distillation")["cases"]
    assert len(cases) == 12
    for case in cases:
        hidden = flat["student_logits"].clone().requires_grad_()
        targets = torch.full((many, length), -100)
        targets[:, :-1] = tensors[case["labels"]][:, 1:]
        count = int((targets >= 0).sum())
        heads = [LazyLogits(flat[f"teacher{number}_logits"], one, None) for number in (1, 2)]
        teaching = DistillationTargets(
            heads, case["temperature"], case["alpha"], divergence_weight=count / many
        )
        total, nats = sliced_cross_entropy(
            hidden, one, None, targets.flatten(), distillation=teaching, slice_rows=5
        )
        (total / count).backward()
        assert float(total.detach()) / count == pytest.approx(case["loss"], abs=1e-5)
        assert float(nats) / count == pytest.approx(case["cross_entropy_part"], abs=1e-5)
        assert float(hidden.grad.norm()) == pytest.approx(case["gradient_norm"], abs=1e-5)
        gradient = hidden.grad.view(many, length, vocabulary)
        assert gradient[0, 0].tolist() == pytest.approx(case["gradient_row_0_0"], abs=1e-5)
        assert float(gradient[:, -1].norm()) == pytest.approx(
            case["gradient_last_position_norm"], abs=1e-5
        )


@pytest.mark.parametrize("name", ["babyllama-distilled", "babyllama-2"])
def test_the_recipes_follow_their_teachers_by_that_law(name: str) -> None:
    distil = read_recipe(name).distil
    assert distil is not None and distil.divergence == "per-sequence"
    changed = read_recipe(name, "", ["distil.divergence=per-token"]).distil
    assert changed is not None and changed.divergence == "per-token"


def test_lamb_is_the_authors(training_cases: Path) -> None:
    tensors = load_file(training_cases / "lamb.safetensors")
    for tag, eps, decay in (
        ("eps1e-6_decay0.1", 1e-6, 0.1),
        ("eps1e-8_decay0.1", 1e-8, 0.1),
        ("eps1e-6_decay0", 1e-6, 0.0),
    ):
        weights = {
            name: torch.nn.Parameter(tensors[name].clone())
            for name in ("matrix", "vector", "zeros")
        }
        decays = {"params": [weights["matrix"], weights["zeros"]], "weight_decay": decay}
        optimizer = Lamb(
            [decays, {"params": [weights["vector"]], "weight_decay": 0.0}], 0.01, (0.9, 0.98), eps
        )
        for step in range(3):
            for name, weight in weights.items():
                weight.grad = tensors[f"step{step}_gradient_{name}"].clone()
            optimizer.step()
            for name, weight in weights.items():
                assert torch.allclose(
                    weight, tensors[f"{tag}_after_step{step}_{name}"], rtol=0, atol=1e-6
                )


RECIPE_OF = {  # a record of decay groups -> the recipe that trains so, and the model of the record
    "ltg-bert (babylm/train)": ("ltg-bert", {}),
    "ltg-bert (BNC training)": ("ltg-bert", {}),
    "elc-bert base": ("elc-bert", {"layer_mix": "base"}),
    "elc-bert zero": ("elc-bert-zero", {"layer_mix": "zero"}),
    "elc-bert normalized": ("elc-bert-normalized", {"layer_mix": "normalized"}),
    "elc-bert weighted_output": ("elc-bert-weighted-output", {"layer_mix": "weighted_output"}),
    "gpt-bert gated": ("gpt-bert-10m", {}),
    "gpt-bert plain": ("gpt-bert-10m", {"attention_gate": False, "layer_weights": False}),
    "babyllama student (llama), library 5.23": ("babyllama", {"layers": 1}),
    "babyllama teacher (gpt2), library 5.23": ("gpt2-705m", {"layers": 1}),
}


@pytest.mark.parametrize("case", RECIPE_OF)
def test_the_same_weights_decay_as_in_the_original_code(case: str, training_cases: Path) -> None:
    recorded = read(training_cases, "weight_decay_groups")
    assert {name for name, record in recorded.items() if "groups" in record} == RECIPE_OF.keys()
    name, model = RECIPE_OF[case]
    bnc = "BNC" in case
    recipe = read_recipe(name, "", ['optimizer.exempt=["positions"]'] if bnc else [])
    spec = ModelSpec(
        **(
            SHAPE
            | {
                "architecture": recipe.model.architecture,
                "norm_eps": 1e-6,
                "tied": recipe.model.tied,
            }
            | model
        )
    )
    built = build_model(spec, VOCABULARY, masked=True)
    optimizer = recipe.optimizer
    ours = build_param_groups(built, 0.1, optimizer.exempt, optimizer.decay_mixing)
    names = {id(parameter): name for name, parameter in built.named_parameters()}
    decays = {
        names[id(parameter)]
        for group in ours
        if group["weight_decay"]
        for parameter in group["params"]
    }
    expected = set()
    for group in recorded[case]["groups"]:
        for one in group["names"] if group["weight_decay"] else ():
            first = one.partition(" = ")[0]
            expected.add(
                first if "babyllama" in case else convert_weight_name(first, "gpt-bert" in case)
            )
    assert decays == expected
    assert (
        list(optimizer.betas) == recorded[case]["betas"] and optimizer.eps == recorded[case]["eps"]
    )
    if not bnc:
        assert optimizer.weight_decay == (0.0 if name == "gpt2-705m" else 0.1)


def recorded_steps(
    name: str, tmp_path: Path, cases: Path
) -> tuple[Recipe, Trainer, dict[str, torch.Tensor]]:
    """Our trainer with the recorded initial weights, and a recipe of the recorded numbers."""
    tensors = load_file(cases / f"{name.replace('-', '_')}_steps.safetensors")
    facts = read(cases, "steps")[name]
    gpt = name == "gpt-bert"
    optimizer = {
        "name": "lamb",
        "lr": 0.01,
        "betas": [0.9, 0.98],
        "clip": 2.0,
        "final": 0.1,
        "weight_decay": 0.1,
    }
    optimizer |= {"warmup_steps": 2, "eps": 1e-8 if gpt else 1e-6}
    optimizer |= (
        {"cooldown": 0.2, "ema": 0.999, "decay_mixing": True} if gpt else {"exempt": ["embeddings"]}
    )
    phases = make_phases((10, 1.0, 1.0) if gpt else (10, 0.0, 1.0), unit="steps")
    recipe = make_recipe(
        **(phases | {"methods": ["mntp" if gpt else "mlm"]}),
        model=SHAPE | {"architecture": name, "norm_eps": facts["configuration"]["layer_norm_eps"]},
        objective={"masked": "mntp" if gpt else "mlm", "z_loss": 1e-4 if gpt else 0.0},
        batch={"tokens": 72 if gpt else 36, "length": 12},
        optimizer=optimizer,
    )
    corpus = build_corpus(recipe, write_text(tmp_path / "text"), tmp_path / "corpus")
    training = Trainer(recipe, corpus, RuntimeSettings(device="cpu"))
    training.model = build_model(recipe.model, VOCABULARY, masked=True).train()
    with torch.no_grad():
        weights = dict(training.model.named_parameters())
        for key, tensor in tensors.items():
            if key.startswith("initial."):
                weights[convert_weight_name(key.removeprefix("initial."), gpt)].copy_(tensor)
    spec = recipe.optimizer
    decay = optim.build_param_groups(
        training.model, spec.weight_decay, spec.exempt, spec.decay_mixing
    )
    training.optimizer = optim.build_optimizer("lamb", decay, spec.lr, (0.9, 0.98), spec.eps)
    training.ema = optim.Ema(training.model, spec.ema) if spec.ema else None
    return recipe, training, tensors


@pytest.mark.long
@pytest.mark.parametrize("name", ["ltg-bert", "gpt-bert"])
def test_ten_steps_are_those_of_the_original_loop(
    name: str, training_cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rates, losses, gradient norms, weights and averages: the recorded batches through our
    trainer's step.
    """
    recipe, training, tensors = recorded_steps(name, tmp_path, training_cases)
    facts, gpt = read(training_cases, "steps")[name], name == "gpt-bert"

    def batch(number: int, causal: bool) -> TrainingBatch:
        ids, targets = (tensors[key][number].numpy() for key in ("input_ids", "labels"))
        segments = np.zeros_like(ids) if gpt else tensors["padding"][number].numpy()
        return TrainingBatch(
            "clm" if causal else "masked", ids, targets, segments, causal, np.arange(3)
        )

    for step in plan_steps(recipe, len(training.corpus)):
        numbers = (2 * step.index, 2 * step.index + 1) if gpt else (step.index,)
        made = [batch(number, causal=gpt and number % 2 == 1) for number in numbers]
        monkeypatch.setattr(training, "_make_batches", lambda step, first, made=made: made)
        record = training.train_step(step)
        assert record["lr"] == pytest.approx(facts["rate_at_each_step"][step.index], abs=1e-12)
        losses = facts["loss_of_each_batch" if gpt else "loss_of_each_step"]
        assert [*record["loss"].values()] == pytest.approx(
            [losses[number] for number in numbers], abs=1e-5
        )
        assert record["norm"] == pytest.approx(
            facts["gradient_norm_before_clipping"][step.index], rel=1e-5
        )
    ours = {"final": dict(training.model.named_parameters())}
    ours |= {"average": training.ema.average} if training.ema else {}
    for kind, weights in ours.items():
        compared = {key: tensor for key, tensor in tensors.items() if key.startswith(f"{kind}.")}
        assert len(compared) == len(weights)
        for key, tensor in compared.items():
            apart = (weights[convert_weight_name(key.removeprefix(f"{kind}."), gpt)] - tensor).abs()
            # Adam's division magnifies the rounding of gradients near 0: in float64 three of
            # LTG-BERT's embeddings are up to 3e-5 from the record, whose arithmetic was float32.
            assert (apart > 1e-5).sum() <= 3 and apart.max() < 5e-5, key


def test_position_buckets_are_those_of_the_original_code(training_cases: Path) -> None:
    for name, case in read(training_cases, "position_buckets").items():
        if name == "note":
            continue
        far = case["positions"]
        for module in (ltg_bert, gpt_bert):
            index = module.bucket_index(far, case["buckets"], far)
            distances = [*index[0].flip(0).tolist(), *index[1:, 0].tolist()]
            assert distances == case["index_of_distance"], name


class TestBabyLlamaStream:
    SPEC = CorpusSpec(layout="files", document="corpus", offset="row")

    def test_the_recipe_builds_it(self) -> None:
        corpus = read_recipe("babyllama").corpus
        assert (corpus.layout, corpus.document, corpus.offset, corpus.eos) == (
            "files",
            "corpus",
            "row",
            False,
        )

    def test_tokenizer_and_stream_are_the_authors(
        self, training_cases: Path, tmp_path: Path
    ) -> None:
        facts = read(training_cases, "babyllama_data")
        (tmp_path / "train.train").write_text(facts["text"] * 3, encoding="utf-8")
        (tmp_path / "text.train").write_text(facts["text"], encoding="utf-8")
        # fewer pieces than a recipe may ask for; two specials more than theirs
        seen = TokenizerSpec.model_construct(
            vocabulary=facts["tokenizer"]["vocab_size_here"] + 2, alphabet="seen", min_frequency=2,
            normalizer="NFKC",
            single_digits=False,
        )  # fmt: skip
        lines = _tokenizer_training_lines(
            load_text_source(str(tmp_path / "train.train")), self.SPEC
        )
        ours = train_tokenizer(lines, seen, self.SPEC)
        recorded = (training_cases / "babyllama_tokenizer.json").read_text(encoding="utf-8")
        merges = [
            [
                merge.split(" ") if isinstance(merge, str) else merge
                for merge in json.loads(text)["model"]["merges"]
            ]
            for text in (ours.to_str(), recorded)
        ]
        assert merges[0] == merges[1]
        theirs = Tokenizer.from_str(recorded)
        theirs.pre_tokenizer = pre_tokenizers.ByteLevel(
            add_prefix_space=facts["tokenizer"]["add_prefix_space_in_use"]
        )
        (part,) = load_text_source(str(tmp_path / "text.train")).files
        stream = [i for ids, *_ in encode_file(theirs, part) for i in ids]
        assert stream == facts["ids_before_chunking"]
        assert [ours.id_to_token(i) for ids, *_ in encode_file(ours, part) for i in ids] == facts[
            "tokens"
        ]
        fixed = facts["chunks_fixed"]
        assert count_rows(len(stream), 16, "fixed") == fixed["count"]
        assert [stream[16 * n : 16 * n + 16] for n in range(2)] == fixed["chunks"]
        assert (
            count_rows(facts["chunks_random"]["tokens"], 16, "row")
            == facts["chunks_random"]["count"]
        )
