"""The training loop: exact resumption, batch layout changes rounding only, learning."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recipe_helpers import make_phases, make_recipe
from safetensors.torch import load_file
from torch.nn import functional as F  # noqa: N812 - its usual name
from training_text import build_corpus, write_text

from antlm_bench.checkpoints import open_checkpoint
from antlm_bench.errors import DataError, TrainingError
from antlm_bench.training import schedule
from antlm_bench.training.corpus import Corpus
from antlm_bench.training.model_factory import (
    build_model,
    compute_hidden_states,
    lm_head_parameters,
)
from antlm_bench.training.objectives import TrainingBatch, make_clm_batch
from antlm_bench.training.pretrain import MaskCounts, RuntimeSettings, Trainer, pretrain
from antlm_bench.training.recipe import Recipe
from antlm_bench.training.schedule import count_rows, plan_steps

CorpusOf = Callable[[Recipe], Corpus]
Weights = dict[str, torch.Tensor]
LTG = {"architecture": "ltg-bert", "dropout": 0.1, "attention_dropout": 0.1, "buckets": 4}
GPT_BERT = LTG | {"architecture": "gpt-bert"}
SMOOTH = {
    "eps": 1e-4
}  # so that Adam does not blow up the rounding of gradients that are zero but for it


class RecordingCallback:
    """Keeps every record; may request a stop, and may change the record of a step."""

    def __init__(
        self, on_record: Callable[[dict[str, Any]], None] = lambda _: None, stop_at: int = -1
    ) -> None:
        self.records: list[dict[str, Any]] = []
        self.checkpoints: list[tuple[str, int]] = []
        self.on_record, self.stop_at = on_record, stop_at

    def on_train_begin(self, total_tokens: int, steps_done: int, tokens_seen: int) -> None:
        self.began = total_tokens, steps_done, tokens_seen

    def on_step_end(self, record: dict[str, Any]) -> None:
        assert record.pop("seconds") >= 0
        self.records.append(record)
        self.on_record(record)

    def on_save(self, checkpoint: Path, step: int) -> None:
        self.checkpoints.append((checkpoint.name, step))

    def stop_requested(self) -> bool:
        return len(self.records) == self.stop_at


@pytest.fixture(scope="module")
def corpus_of(tmp_path_factory: pytest.TempPathFactory) -> CorpusOf:
    text = write_text(tmp_path_factory.mktemp("text") / "text")
    root, created = tmp_path_factory.mktemp("corpora"), {}

    def corpus(recipe: Recipe) -> Corpus:
        key = recipe.corpus.model_dump_json()
        if key not in created:
            created[key] = build_corpus(recipe, text, root / str(len(created)))
        return created[key]

    return corpus


def run(
    recipe: Recipe,
    corpus: Corpus,
    out: Path,
    log: RecordingCallback | None = None,
    teachers: Any = (),
    **conditions: Any,
) -> Trainer:
    settings = RuntimeSettings(device="cpu", **conditions)
    trainer = Trainer(recipe, corpus, settings, teachers)
    checkpoint = pretrain(trainer, out, log or RecordingCallback(), settings)
    assert checkpoint is None or checkpoint == out / "main"
    return trainer


def weights(trainer: Trainer) -> Weights:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def farthest(ours: Weights, theirs: Weights) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def steps(many: int, causal: float, masked: float) -> dict[str, Any]:
    return make_phases((many, causal, masked), unit="steps")


RESUMED = {
    "adamw": make_recipe(
        model={"architecture": "gpt2", "dropout": 0.1, "attention_dropout": 0.1}, **steps(20, 1, 0)
    ),
    "lamb, averaged": make_recipe(
        model=GPT_BERT,
        optimizer={"name": "lamb", "ema": 0.9, "schedule": "linear", "weight_decay": 0.1},
        objective={
            "masked": "mntp",
            "spans": "uniform",
            "rate": 0.3,
            "final_rate": 0.15,
            "z_loss": 1e-4,
        },
        corpus={"offset": "random"},
        **steps(20, 1, 3),
    ),
    "alternating": make_recipe(
        model=LTG, **make_phases((4, 1, 0), (8, 0, 1), (8, 1, 0), unit="steps")
    ),
    "reset at the switch": make_recipe(
        optimizer={"at_switch": "reset", "restart": "phase", "warmup": 0.2},
        **make_phases((4, 1, 0), (8, 0, 1), (8, 1, 0), unit="steps"),
    ),
    "growing": make_recipe(batch={"final_tokens": 128, "longer": [[0.4, 32]]}, **steps(20, 1, 1)),
    "evened out": make_recipe(
        model=GPT_BERT,
        objective={"masked": "mntp", "spans": "uniform", "even": True},
        corpus={"offset": "random"},
        **steps(20, 1, 3),
    ),
    "short rows": make_recipe(
        batch={"short": 0.5}, objective={"spans": "geometric"}, **steps(20, 1, 1)
    ),
    "whole files": make_recipe(
        corpus={"layout": "files", "document": "corpus", "offset": "row"}, **steps(20, 1, 0)
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("name", RESUMED)
def test_twenty_steps_are_ten_and_ten_more(name: str, corpus_of: CorpusOf, tmp_path: Path) -> None:
    recipe, corpus = RESUMED[name], corpus_of(RESUMED[name])
    whole, first, second = RecordingCallback(), RecordingCallback(), RecordingCallback()
    run(recipe, corpus, tmp_path / "whole", whole)
    run(recipe, corpus, tmp_path / "parts", first, stop_after=10)
    assert not (tmp_path / "parts" / "main").exists()
    training = run(recipe, corpus, tmp_path / "parts", second)
    assert training.steps_done == 20 and len(first.records) == len(second.records) == 10
    assert first.records + second.records == whole.records
    assert second.began == (whole.began[0], 10, first.records[-1]["tokens"])
    for file in ("main/model.safetensors", "main/config.json", "state/00000020/tensors"):
        assert (tmp_path / "parts" / file).read_bytes() == (
            tmp_path / "whole" / file
        ).read_bytes(), file


def test_it_stops_when_asked_and_keeps_what_it_has(corpus_of: CorpusOf, tmp_path: Path) -> None:
    recipe = make_recipe(**steps(6, 1, 0))
    assert run(recipe, corpus_of(recipe), tmp_path, RecordingCallback(stop_at=4)).steps_done == 4
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["00000004"]
    assert run(recipe, corpus_of(recipe), tmp_path, RecordingCallback(stop_at=2)).steps_done == 6, (
        "asked at the end, it has finished"
    )


@pytest.mark.long
@pytest.mark.parametrize(
    "recipe",
    [
        make_recipe(model={"attention_dropout": 0.1}, optimizer=SMOOTH, **steps(6, 1, 0)),
        make_recipe(model=LTG, optimizer=SMOOTH, **steps(6, 0, 1)),
        make_recipe(
            model=GPT_BERT,
            optimizer=SMOOTH | {"name": "lamb"},
            batch={"tokens": 96},
            **steps(6, 1, 2),
        ),
    ],
    ids=["llama", "ltg-bert", "gpt-bert"],
)
def test_the_layout_of_a_batch_changes_rounding_only(
    recipe: Recipe, corpus_of: CorpusOf, tmp_path: Path
) -> None:
    expected = weights(run(recipe, corpus_of(recipe), tmp_path / "whole"))
    for micro in (1, 16, 32, 48):
        result = weights(
            run(recipe, corpus_of(recipe), tmp_path / str(micro), micro_batch_tokens=micro)
        )
        assert farthest(result, expected) < 1e-5


def test_rows_of_a_pass_come_once_each_in_an_order_of_its_own(corpus_of: CorpusOf) -> None:
    for offset in ("fixed", "random", "row"):
        recipe = make_recipe(corpus={"offset": offset})
        corpus = corpus_of(recipe)
        training = Trainer(recipe, corpus, RuntimeSettings(device="cpu"))
        passes: dict[int, list[int]] = {}
        for step in plan_steps(recipe, len(corpus)):
            passes.setdefault(step.pass_index, []).extend(training._row_starts(step).tolist())
        many = count_rows(len(corpus), 16, offset)
        assert len(passes) == 2 and passes[0] != passes[1]
        for rows in passes.values():
            begin = min(rows)
            if offset == "row":  # each row begins anywhere in its own part of the text
                assert (
                    sorted(row // 16 for row in rows) == [*range(many)]
                    and len({row % 16 for row in rows}) > 1
                )
                assert min(rows) >= 0 and max(rows) + 16 <= len(corpus)
                continue
            assert sorted(rows) == [begin + 16 * n for n in range(many)] and begin < 16
            assert begin == 0 or offset == "random"
            assert max(rows) + 16 <= len(corpus)
        assert (len({min(rows) for rows in passes.values()}) > 1) == (offset != "fixed")


def gradients(training: Trainer, step: Any, monkeypatch: pytest.MonkeyPatch) -> Weights:
    """What the optimizer is given in a step."""
    result: Weights = {}

    def keep(*_: Any) -> None:
        result.update(
            {
                name: p.grad.clone()
                for name, p in training.model.named_parameters()
                if p.grad is not None
            }
        )

    monkeypatch.setattr(training.optimizer, "step", keep)
    training.train_step(step)
    return result


def entropy(training: Trainer, batch: TrainingBatch) -> torch.Tensor:
    """The mean cross-entropy of a batch, by whole logits."""
    weight, bias = lm_head_parameters(training.model)
    hidden = compute_hidden_states(training.model, batch)
    hidden = training.model.head.transform(hidden) if hasattr(training.model, "head") else hidden
    logits = hidden @ weight.t() + (0 if bias is None else bias)
    return F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(batch.targets).flatten())


def slopes(training: Trainer, loss: torch.Tensor) -> Weights:
    named = dict(training.model.named_parameters())
    result = torch.autograd.grad(loss, [*named.values()], allow_unused=True)
    return {name: g for name, g in zip(named, result, strict=True) if g is not None}


@pytest.mark.parametrize(
    "model", [{}, {"architecture": "gpt-bert", "buckets": 4}], ids=["llama", "gpt-bert"]
)
def test_two_losses_weigh_what_the_phase_says(
    model: dict[str, Any], corpus_of: CorpusOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(
        model=model, optimizer={"clip": 1e9}, batch={"tokens": 128}, **steps(3, 1, 3)
    )
    training = Trainer(
        recipe, corpus_of(recipe), RuntimeSettings(device="cpu", micro_batch_tokens=32)
    )
    step = plan_steps(recipe, len(training.corpus))[1]
    causal, hidden = training._make_batches(step, training._row_starts(step))
    assert (len(causal), len(hidden)) == (2, 6) and causal.causal and not hidden.causal
    expected = slopes(training, 0.25 * entropy(training, causal) + 0.75 * entropy(training, hidden))
    assert farthest(gradients(training, step, monkeypatch), expected) < 1e-6


def test_the_log_has_the_mean_of_each_loss(corpus_of: CorpusOf, tmp_path: Path) -> None:
    recipe, log = make_recipe(**steps(3, 1, 1)), RecordingCallback()
    training = Trainer(recipe, corpus_of(recipe), RuntimeSettings(device="cpu"))
    step = plan_steps(recipe, len(training.corpus))[0]
    batches = training._make_batches(step, training._row_starts(step))
    expected = {batch.objective: entropy(training, batch).item() for batch in batches}
    run(recipe, corpus_of(recipe), tmp_path, log)
    assert log.records[0]["loss"] == pytest.approx(expected, rel=1e-5)
    assert [record["step"] for record in log.records] == [1, 2, 3]
    assert [record["tokens"] for record in log.records] == [64, 128, 192]


@pytest.mark.long
def test_objectives_alternate_at_the_ends_of_epochs(corpus_of: CorpusOf, tmp_path: Path) -> None:
    recipe, log = make_recipe(**make_phases((1, 1, 0), (2, 0, 1), (1, 1, 0))), RecordingCallback()
    corpus = corpus_of(recipe)
    run(recipe, corpus, tmp_path, log)
    epoch = math.ceil(count_rows(len(corpus), 16, "fixed") / 4)
    has_target = [[*record["loss"]] for record in log.records]
    assert has_target == [["clm"]] * epoch + [["mlm"]] * 2 * epoch + [["clm"]] * epoch
    assert [record["step"] - 1 for record in log.records if record["switch"]] == [epoch, 3 * epoch]
    read = count_rows(len(corpus), 16, "fixed") * 16
    assert log.records[-1]["words"] == pytest.approx(
        4 * corpus.count_words(np.array([0]), read), abs=0.6
    )


def test_short_rows_are_as_short_as_in_the_original_code(
    corpus_of: CorpusOf, cases_root: Path
) -> None:
    recipe = make_recipe(batch={"tokens": 14 * 200, "length": 14, "short": 0.1}, **steps(50, 0, 1))
    training = Trainer(recipe, corpus_of(recipe), RuntimeSettings(device="cpu"))
    lengths = np.concatenate([training._row_lengths(step) for step in plan_steps(recipe, 10**6)])
    shares = np.bincount(lengths, minlength=15) / len(lengths)
    text = (cases_root / "original" / "training" / "masking.json").read_text(encoding="utf-8")
    for name in ("ltg-bert (babylm/train)", "elc-bert"):
        recorded = json.loads(text)["short_sequences"][name]["words_left"]
        for words in range(1, 15):
            assert (
                abs(shares[words] - recorded[str(words)])
                < 5 * (2 * recorded[str(words)] / len(lengths)) ** 0.5
            )


@pytest.mark.parametrize(("rule", "updates"), [("keep", 9), ("reset", 4)])
def test_the_optimizer_forgets_at_a_switch_if_told_to(
    rule: str, updates: int, corpus_of: CorpusOf, tmp_path: Path
) -> None:
    recipe = make_recipe(
        optimizer={"at_switch": rule}, **make_phases((5, 1, 0), (4, 0, 1), unit="steps")
    )
    training = run(recipe, corpus_of(recipe), tmp_path)
    assert {int(state["step"]) for state in training.optimizer.state.values()} == {updates}


def test_a_step_without_a_target_moves_nothing(corpus_of: CorpusOf, tmp_path: Path) -> None:
    recipe, log = make_recipe(objective={"rate": 0.0}, **steps(2, 0, 1)), RecordingCallback()
    corpus = corpus_of(recipe)
    before = weights(Trainer(recipe, corpus, RuntimeSettings(device="cpu")))
    assert farthest(weights(run(recipe, corpus, tmp_path, log)), before) == 0
    assert [record["loss"] for record in log.records] == [{}, {}]


def test_an_objective_without_targets_yields_its_weight(
    corpus_of: CorpusOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(objective={"rate": 0.0}, optimizer={"clip": 1e9}, **steps(2, 1, 1))
    training = Trainer(recipe, corpus_of(recipe), RuntimeSettings(device="cpu"))
    step = plan_steps(recipe, len(training.corpus))[0]
    expected = slopes(
        training, entropy(training, training._make_batches(step, training._row_starts(step))[0])
    )
    assert farthest(gradients(training, step, monkeypatch), expected) < 1e-6


@pytest.mark.long
def test_it_learns(corpus_of: CorpusOf, tmp_path: Path) -> None:
    """Words drawn alike from 35, 1 to 9 in a line: far below guessing among 300, and both ways."""
    recipe, log = (
        make_recipe(model={"positions": 16}, optimizer={"lr": 1e-2}, **steps(120, 1, 1)),
        RecordingCallback(),
    )
    run(recipe, corpus_of(recipe), tmp_path, log)
    for name in ("clm", "mlm"):
        first, last = (
            np.mean([r["loss"][name] for r in part])
            for part in (log.records[:5], log.records[-20:])
        )
        assert first > 5 and last < 4


class TestDistillation:
    RECIPE = make_recipe(
        distil={"teachers": ["a", "b"], "temperature": 2.0, "alpha": 0.3},
        optimizer={"clip": 1e9},
        **steps(2, 1, 0),
    )

    def teachers(self, *architectures: str, vocabulary: int) -> list[Any]:
        created = []
        for number, architecture in enumerate(architectures):
            torch.manual_seed(number)
            model = build_model(
                make_recipe(model={"architecture": architecture, "hidden": 16}).model,
                vocabulary,
                masked=False,
            )
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(4 if parameter.dim() > 1 else 1)
            created.append(model)
        return created

    @pytest.mark.parametrize("divergence", ["per-sequence", "per-token"])
    def test_the_student_follows_the_teachers_mean(
        self, divergence: str, corpus_of: CorpusOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        corpus = corpus_of(self.RECIPE)
        teachers = self.teachers("llama", "gpt2", vocabulary=len(corpus.tokenizer))
        distil = self.RECIPE.distil
        assert distil is not None and distil.divergence == "per-sequence", (
            "the published law is the default"
        )
        recipe = self.RECIPE.model_copy(
            update={"distil": distil.model_copy(update={"divergence": divergence})}
        )
        training = Trainer(
            recipe, corpus, RuntimeSettings(device="cpu", micro_batch_tokens=16), teachers
        )
        step = plan_steps(recipe, len(corpus))[0]
        (batch,) = training._make_batches(step, training._row_starts(step))
        has_target = torch.from_numpy(batch.targets) >= (0 if divergence == "per-token" else -100)
        taught = [
            (compute_hidden_states(t, batch) @ lm_head_parameters(t)[0].t())[has_target].float()
            for t in training.teachers
        ]
        mean = torch.stack(taught).mean(0)
        logits = (
            compute_hidden_states(training.model, batch) @ lm_head_parameters(training.model)[0].t()
        )[has_target]
        soft = F.kl_div(
            F.log_softmax(logits / 2, -1),
            F.log_softmax(mean / 2, -1),
            log_target=True,
            reduction="batchmean",
        )
        soft = soft if divergence == "per-token" else soft * len(logits) / len(batch)
        expected = slopes(training, 0.3 * entropy(training, batch) + 0.7 * 4 * soft)
        result = gradients(training, step, monkeypatch)
        assert expected.keys() == result.keys()
        for (
            name,
            slope,
        ) in expected.items():  # teachers are in bfloat16, and their products differ by batch
            assert (slope - result[name]).norm() < 0.02 * slope.norm(), name

    def test_teachers_do_not_learn_and_stay_out_of_the_state(
        self, corpus_of: CorpusOf, tmp_path: Path
    ) -> None:
        corpus = corpus_of(self.RECIPE)
        (teacher, other) = self.teachers("llama", "llama", vocabulary=len(corpus.tokenizer))
        before = {name: p.detach().to(torch.bfloat16) for name, p in teacher.named_parameters()}
        run(self.RECIPE, corpus, tmp_path, teachers=[teacher, other])
        assert all(torch.equal(before[name], p) for name, p in teacher.named_parameters())
        state = (tmp_path / "state" / "00000002" / "tensors").read_bytes()
        assert b"teacher" not in state[:20_000]


def test_counts_of_what_was_hidden_add_up_over_processes() -> None:
    """Each process counts what it has hidden itself, and learns of the others' when both call
    `share`.
    """
    delta = np.zeros(4, np.int16)
    counts = [MaskCounts(4, lambda _: delta) for _ in range(2)]
    before = np.zeros(4, np.int16)
    for number in range(3):
        counts[0].counts[number] += 1
        counts[1].counts[3] += 1
        delta = sum(one.counts - before for one in counts)
        for one in counts:
            one.synchronize()
            assert one.counts.tolist() == (before + delta).tolist()
        before = before + delta
    assert before.tolist() == [1, 1, 1, 3]


class TestHeldOut:
    RECIPE = make_recipe(
        corpus={"held_out": 0.2},
        optimizer={"lr": 0.05, "schedule": "constant"},
        **make_phases((6, 1, 0)),
    )

    def held_out_loss(self, training: Trainer) -> float:
        """The mean cross-entropy on all rows of the held-out text, by whole logits."""
        text = training.corpus.held_out
        assert text is not None
        ids = np.array(
            [text.tokens[16 * n : 16 * n + 16] for n in range(len(text) // 16)], np.int64
        )
        document = np.searchsorted(
            text.document_starts, np.arange(ids.size).reshape(ids.shape), side="right"
        )
        training.model.eval()
        with torch.no_grad():
            loss = entropy(training, make_clm_batch(ids, document, np.arange(len(ids)))).item()
        training.model.train()
        return loss

    @pytest.mark.long
    def test_the_pass_with_the_lowest_loss_is_the_result(
        self, corpus_of: CorpusOf, tmp_path: Path
    ) -> None:
        corpus, log, seen = corpus_of(self.RECIPE), RecordingCallback(), []
        training = Trainer(
            self.RECIPE, corpus, RuntimeSettings(device="cpu", micro_batch_tokens=32)
        )

        def look(record: dict[str, Any]) -> None:
            if "held_out" in record:
                assert record["held_out"] == pytest.approx(self.held_out_loss(training), rel=1e-5)
                seen.append((record["held_out"], record["step"], weights(training)))

        log.on_record = look
        pretrain(training, tmp_path, log, RuntimeSettings(device="cpu", micro_batch_tokens=32))
        assert len(seen) == 6
        loss, step, best = min(seen, key=lambda one: one[0])
        assert loss < seen[-1][0], "the last pass is over-fitted: else this would show nothing"
        assert farthest(load_file(tmp_path / "main" / "model.safetensors"), best) == 0
        card = json.loads((tmp_path / "main" / "config.json").read_text())["antlm_bench"]
        assert card["steps"] == step

    @pytest.mark.long
    def test_a_stopped_run_selects_the_same(self, corpus_of: CorpusOf, tmp_path: Path) -> None:
        corpus = corpus_of(self.RECIPE)
        total = len(plan_steps(self.RECIPE, len(corpus)))
        run(self.RECIPE, corpus, tmp_path / "whole")
        for stop in (total // 3, 2 * total // 3):
            run(self.RECIPE, corpus, tmp_path / "parts", stop_after=stop)
        run(self.RECIPE, corpus, tmp_path / "parts")
        for file in ("main/model.safetensors", "main/config.json", f"state/{total:08}/tensors"):
            assert (tmp_path / "parts" / file).read_bytes() == (
                tmp_path / "whole" / file
            ).read_bytes(), file

    @pytest.mark.parametrize(
        ("share", "said"), [(0.001, "no line is held out"), (0.01, "less than one row of 16")]
    )
    def test_too_little_to_select_on_is_refused(
        self, share: float, said: str, tmp_path: Path
    ) -> None:
        (tmp_path / "a.txt").write_text("a b c d e f g h\n" * 60, encoding="utf-8")
        recipe = make_recipe(corpus={"held_out": share}, **make_phases((1, 1, 0)))
        with pytest.raises(DataError, match=said):
            run(
                recipe,
                build_corpus(recipe, tmp_path / "a.txt", tmp_path / "corpus"),
                tmp_path / "out",
            )
        assert not (tmp_path / "out" / "main").exists()

    def test_a_teacher_counts_in_the_selection(self, corpus_of: CorpusOf) -> None:
        distil = {"teachers": ["a"], "temperature": 2.0, "alpha": 0.3}
        recipe = make_recipe(corpus={"held_out": 0.2}, distil=distil, **make_phases((2, 1, 0)))
        corpus = corpus_of(recipe)
        (teacher,) = TestDistillation().teachers("llama", vocabulary=len(corpus.tokenizer))
        training = Trainer(recipe, corpus, RuntimeSettings(device="cpu"), [teacher])
        plain = self.held_out_loss(training)
        assert training.compute_held_out_loss() > 0.3 * plain + 0.01


class TestFailure:
    @pytest.mark.parametrize("architecture", ["gpt2", "llama"])
    def test_a_learning_rate_far_too_high_is_named(
        self, architecture: str, corpus_of: CorpusOf, tmp_path: Path
    ) -> None:
        """RMSNorm (Llama) divides by a variance that overflows: by the CPU's order of sums, all is
        0 then, or NaN.
        """
        recipe = make_recipe(
            model={"architecture": architecture},
            optimizer={"lr": 1e6, "schedule": "constant"},
            **steps(9, 1, 0),
        )
        message = {
            "gpt2": "the loss is out of bounds .*nan",
            "llama": "the loss is out of bounds|the gradient is zero",
        }
        with pytest.raises(TrainingError, match=message[architecture]) as error:
            run(recipe, corpus_of(recipe), tmp_path)
        assert error.value.location == "step 2, rows 4 to 7 of pass 1"
        assert "--set optimizer.lr=3.3e+05" in error.value.hint and error.value.exit_code == 3
        assert not (tmp_path / "main").exists()

    def test_a_model_that_nothing_can_move_any_more_is_named(
        self, corpus_of: CorpusOf, tmp_path: Path
    ) -> None:
        """All is 0, and the loss that of guessing for ever."""
        recipe = make_recipe(**steps(9, 1, 0))
        training = Trainer(recipe, corpus_of(recipe), RuntimeSettings(device="cpu"))

        def empty(record: dict[str, Any]) -> None:
            with torch.no_grad():
                for parameter in training.model.parameters():
                    parameter.zero_()

        with pytest.raises(TrainingError, match="the gradient is zero") as error:
            pretrain(training, tmp_path, RecordingCallback(empty), RuntimeSettings(device="cpu"))
        assert error.value.location == "step 2, rows 4 to 7 of pass 1"

    @pytest.mark.long
    @pytest.mark.parametrize(
        "recipe",
        [make_recipe(**steps(12, 1, 0)), make_recipe(**steps(12, 1, 1))],
        ids=["clm", "mixed"],
    )
    def test_not_a_number_stops_and_the_earlier_state_still_serves(
        self, recipe: Recipe, corpus_of: CorpusOf, tmp_path: Path
    ) -> None:
        corpus = corpus_of(recipe)
        run(recipe, corpus, tmp_path / "out", stop_after=5)
        training = Trainer(recipe, corpus, RuntimeSettings(device="cpu"))

        def break_it(record: dict[str, Any]) -> None:
            if record["step"] == 7:
                with torch.no_grad():
                    lm_head_parameters(training.model)[0][9, 3] = math.nan

        with pytest.raises(TrainingError, match="nan") as error:
            pretrain(
                training,
                tmp_path / "out",
                RecordingCallback(break_it),
                RuntimeSettings(device="cpu"),
            )
        assert error.value.location.startswith("step 8, rows 28 to 31")
        assert [path.name for path in (tmp_path / "out" / "state").iterdir()] == ["00000005"]
        result = weights(run(recipe, corpus, tmp_path / "out"))
        assert farthest(result, weights(run(recipe, corpus, tmp_path / "whole"))) == 0


def test_a_loss_that_explodes_is_named(corpus_of: CorpusOf, tmp_path: Path) -> None:
    recipe = make_recipe(optimizer={"lr": 3.0, "schedule": "constant"}, **steps(40, 1, 0))
    with pytest.raises(TrainingError, match="the loss is out of bounds") as error:
        run(recipe, corpus_of(recipe), tmp_path)
    assert "nan" not in error.value.message and "lr=1)" in error.value.hint


def test_milestones_are_babylms() -> None:
    expected = [*range(1, 10), *range(10, 100, 10), *range(100, 1001, 100)]
    assert [words / 1_000_000 for words in schedule.MILESTONES] == expected


DENSE = (*range(100, 400, 20), 400)  # some of them within one step


class TestMilestones:
    @pytest.fixture(autouse=True)
    def small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(schedule, "MILLION", 10)
        monkeypatch.setattr(schedule, "MILESTONES", (*DENSE, 10**6))

    @pytest.mark.long
    @pytest.mark.parametrize(("beyond", "reached"), [(1.01, True), (1.05, False)])
    def test_a_run_that_ends_just_before_one_has_reached_it(
        self,
        beyond: float,
        reached: bool,
        corpus_of: CorpusOf,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        recipe, log = make_recipe(**make_phases((1, 1, 0))), RecordingCallback()
        words = run(recipe, corpus_of(recipe), tmp_path / "once").words_seen
        monkeypatch.setattr(schedule, "MILESTONES", (int(beyond * words) // 10 * 10,))
        run(recipe, corpus_of(recipe), tmp_path / "again", log)
        assert [name for name, _ in log.checkpoints] == [
            f"chck_{int(beyond * words) // 10}M"
        ] * reached + ["main"]

    @pytest.mark.long
    def test_each_is_saved_at_the_first_step_with_its_words(
        self, corpus_of: CorpusOf, tmp_path: Path
    ) -> None:
        recipe, log = (
            make_recipe(model=GPT_BERT, optimizer={"ema": 0.9}, **make_phases((1, 1, 1))),
            RecordingCallback(),
        )
        training = run(recipe, corpus_of(recipe), tmp_path, log)
        reached = {
            f"chck_{words // 10}M": next(r for r in log.records if r["words"] >= words)
            for words in DENSE
        }
        assert log.checkpoints[:-1] == [(name, record["step"]) for name, record in reached.items()]
        assert log.checkpoints[-1] == ("main", training.steps_done)
        for name, record in reached.items():
            card = json.loads((tmp_path / name / "config.json").read_text())["antlm_bench"]
            assert (card["steps"], card["tokens_seen"]) == (record["step"], record["tokens"])
            assert card["words_seen"] == record["words"] and card["recipe"] == "toy"
            assert open_checkpoint(str(tmp_path / name)).methods[0] == "causal"
            assert (tmp_path / name / "README.md").exists() and (
                tmp_path / name / "gpt_bert.py"
            ).exists()

    @pytest.mark.long
    def test_what_is_saved_are_the_averaged_weights_of_that_moment(
        self, corpus_of: CorpusOf, tmp_path: Path
    ) -> None:
        recipe, log = (
            make_recipe(optimizer={"ema": 0.9, "schedule": "constant"}, **steps(30, 1, 0)),
            RecordingCallback(),
        )
        training = run(recipe, corpus_of(recipe), tmp_path / "whole", log)
        (at,) = (step for name, step in log.checkpoints if name == "chck_20M")
        cut = run(recipe, corpus_of(recipe), tmp_path / "cut", stop_after=at)
        for folder, source in (("chck_20M", cut), ("main", training)):
            saved = load_file(tmp_path / "whole" / folder / "model.safetensors")
            assert source.ema is not None
            assert farthest(saved, source.ema.average) == 0
            assert farthest(saved, weights(source)) > 1e-4

    @pytest.mark.long
    def test_a_state_is_saved_with_each(self, corpus_of: CorpusOf, tmp_path: Path) -> None:
        recipe = make_recipe(**steps(30, 1, 0))
        whole = RecordingCallback()
        run(recipe, corpus_of(recipe), tmp_path / "a", whole)
        at = next(record["step"] for record in whole.records if record["words"] >= DENSE[-1])

        def stop(record: dict[str, Any]) -> None:
            if record["step"] == at + 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(recipe, corpus_of(recipe), tmp_path / "b", RecordingCallback(stop))
        assert [path.name for path in (tmp_path / "b" / "state").iterdir()] == [f"{at:08}"]


def test_states_are_saved_as_often_as_asked(corpus_of: CorpusOf, tmp_path: Path) -> None:
    recipe = make_recipe(**steps(4, 1, 0))
    seen: list[list[str]] = []

    def look(_: dict[str, Any]) -> None:
        seen.append(sorted(path.name for path in (tmp_path / "state").glob("*")))

    run(recipe, corpus_of(recipe), tmp_path, RecordingCallback(look), save_every_minutes=0.0)
    assert seen == [[], ["00000001"], ["00000002"], ["00000003"]]
