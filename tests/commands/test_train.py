"""`antlm-bench train`: what it refuses and how, what it leaves, and that whatever interrupts it
costs nothing.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from train_helpers import CAUSAL, RECIPE, STEPS, read_files, read_log, read_weights, write_recipe

from antlm_bench import runs
from antlm_bench.checkpoints import open_checkpoint
from antlm_bench.cli import app
from antlm_bench.commands import score as commands_score
from antlm_bench.commands import train as verb
from antlm_bench.commands.train import TrainOptions, train
from antlm_bench.errors import (
    CheckpointError,
    DeclarationError,
    RunError,
    TrainingError,
    UsageError,
)
from antlm_bench.training import checkpoint_io, schedule
from antlm_bench.training import corpus as corpora
from antlm_bench.training import pretrain as loop

PROGRAM = [sys.executable, "-m", "antlm_bench"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "text"
    folder.mkdir()
    words = "the a cat cats dog sees see sleeps who never every old".split()  # noqa: SIM905
    lines = (" ".join(words[(n * step + 3) % 12] for step in range(1, 7)) for n in range(120))
    (folder / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipes"))


@pytest.fixture(scope="module")
def whole(recipe: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert (
        app.run(["train", str(recipe), "--corpus", str(text), "--out", str(out), "--device", "cpu"])
        == 0
    )
    return out


RunTrain = Callable[..., tuple[int, str]]


@pytest.fixture
def run_train(
    recipe: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> RunTrain:
    """run_train(options ..., recipe=..., corpus=..., out=...) -> exit code, stderr on one line."""

    def run(*options: str, **places: object) -> tuple[int, str]:
        given = {"recipe": recipe, "corpus": text, "out": tmp_path / "out"} | places
        capsys.readouterr()
        code = app.run(["train", str(given["recipe"]), "--corpus", str(given["corpus"]), "--out",
                        str(given["out"]),
                        "--device", "cpu", *options])  # fmt: skip
        return code, " ".join(capsys.readouterr().err.split())

    return run


class TestRefusals:
    @pytest.mark.long
    @pytest.mark.parametrize(
        ("options", "places", "code", "expected"),
        [
            ((), {"recipe": "babylama"}, 2, "did you mean 'babyllama'?"),
            ((), {"recipe": "absent.toml"}, 2, "no such file"),
            (
                ("--set", "optimizer.lrr=1"),
                {},
                2,
                "optimizer: unknown key 'lrr': did you mean 'lr'?",
            ),
            (("--set", "optimizer.lr=fast"), {}, 2, "optimizer.lr"),
            (("--set", "optimizer.lr"), {}, 2, "is not KEY=VALUE"),
            (("--set", "batch.length=64"), {}, 2, "rows of 64 do not fit"),
            (("--scale", "huge"), {}, 2, "has no scale 'huge'"),
            (("--batch-tokens", "many"), {}, 2, "not a number of tokens"),
            (("--precision", "int4"), {}, 2, "--precision"),
            (("--teacher", "somewhere"), {}, 2, "teachers given: 1, but tiny has 0"),
            (("--resume",), {}, 2, "nothing to resume"),
            (("--track", "tensorbord"), {}, 2, "did you mean 'tensorboard'?"),
            ((), {"corpus": "absent"}, 3, "no such file or folder"),
            ((), {"corpus": "blimp"}, 3, "no grammar"),
        ],
    )
    def test_what_cannot_be_is_refused_and_leaves_nothing(
        self,
        run_train: RunTrain,
        tmp_path: Path,
        options: tuple[str, ...],
        places: dict[str, str],
        code: int,
        expected: str,
    ) -> None:
        actual_code, message = run_train(*options, **places)
        assert actual_code == code and expected in message and message.startswith("error: "), (
            message
        )
        assert not [path for path in (tmp_path / "out").glob("*") if path.name != ".lock"]

    def test_a_corpus_too_small_for_a_row(self, run_train: RunTrain, tmp_path: Path) -> None:
        (tmp_path / "small.txt").write_text("cat", encoding="utf-8")
        code, message = run_train(corpus=tmp_path / "small.txt")
        assert code == 3 and "less than one row of 16" in message

    @pytest.mark.long
    def test_a_run_without_a_step_does_not_block_its_folder(
        self, run_train: RunTrain, tmp_path: Path
    ) -> None:
        (tmp_path / "small.txt").write_text("cat", encoding="utf-8")
        assert run_train(corpus=tmp_path / "small.txt")[0] == 3
        assert run_train("--resume")[0] == 2, "another run is not resumed"
        assert run_train("--set", "optimizer.lr=2e-3")[0] == 0
        record = json.loads((tmp_path / "out" / "train.json").read_text(encoding="utf-8"))
        assert record["recipe"]["optimizer"]["lr"] == 2e-3

    @pytest.mark.parametrize("stop_after", [3, None])
    def test_another_precision_is_another_run(
        self, run_train: RunTrain, recipe: Path, text: Path, tmp_path: Path, stop_after: int | None
    ) -> None:
        train(
            str(recipe),
            str(text),
            tmp_path / "out",
            TrainOptions(device="cpu", stop_after=stop_after),
        )
        before = read_files(tmp_path / "out")
        code, message = run_train("--precision", "bfloat16")
        assert code == 2 and "precision is 'float32' in train.json and 'bfloat16' now" in message
        assert read_files(tmp_path / "out") == before

    def test_another_format_of_the_stream_is_another_run(
        self, run_train: RunTrain, whole: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(corpora, "CORPUS_FORMAT_VERSION", corpora.CORPUS_FORMAT_VERSION + 1)
        code, message = run_train(out=whole)
        assert code == 2 and "corpus_format is 1 in train.json and 2 now" in message

    def test_a_record_of_an_older_version_still_continues(
        self, run_train: RunTrain, recipe: Path, text: Path, tmp_path: Path
    ) -> None:
        train(str(recipe), str(text), tmp_path / "out", TrainOptions(device="cpu", stop_after=3))
        file = tmp_path / "out" / "train.json"
        record = json.loads(file.read_text(encoding="utf-8"))
        del record["precision"], record["corpus_format"]
        file.write_text(json.dumps(record), encoding="utf-8")
        assert run_train()[0] == 0

    def test_a_shape_that_cannot_be(self, run_train: RunTrain) -> None:
        code, message = run_train("--set", "model.buckets=32")
        assert code == 2 and "buckets = 32 must be fewer than positions = 32" in message

    def test_a_folder_with_something_else(self, run_train: RunTrain, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").write_text("precious", encoding="utf-8")
        code, message = run_train()
        assert code == 2 and "holds no training run" in message
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]

    def test_a_file_for_a_folder(self, run_train: RunTrain, tmp_path: Path) -> None:
        (tmp_path / "out").write_text("precious", encoding="utf-8")
        code, message = run_train()
        assert code == 3 and "a file, not a folder" in message

    def test_another_recipe_names_the_key(self, run_train: RunTrain, whole: Path) -> None:
        before = read_files(whole)
        code, message = run_train("--set", "optimizer.lr=2e-3", out=whole)
        assert code == 2 and "recipe.optimizer.lr is 0.001 in train.json and 0.002 now" in message
        assert read_files(whole) == before

    def test_another_text_is_another_run(
        self, run_train: RunTrain, whole: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "text").mkdir()
        (tmp_path / "text" / "b.txt").write_text("the cat sleeps", encoding="utf-8")
        code, message = run_train(corpus=tmp_path / "text", out=whole)
        assert code == 2 and "text is" in message and "the folder holds another run" in message

    def test_a_record_that_cannot_be_read(self, run_train: RunTrain, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "train.json").write_text("{", encoding="utf-8")
        code, message = run_train()
        assert code == 3 and "train.json" in message

    def test_a_second_process_in_the_same_folder(self, run_train: RunTrain, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        with runs.lock_folder(tmp_path / "out"):
            code, message = run_train()
        assert code == 3 and "another process" in message

    def test_a_tracker_that_is_not_installed(
        self, run_train: RunTrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import accelerate.tracking

        monkeypatch.setattr(accelerate.tracking, "get_available_trackers", list)
        code, message = run_train("--track", "tensorboard")
        assert (
            code == 2
            and "package tensorboard, which is not installed" in message
            and "pip install tensorboard" in message
        )
        assert not (tmp_path / "out").exists()

    def test_a_loss_that_leaves_all_bounds(self, run_train: RunTrain, tmp_path: Path) -> None:
        code, message = run_train("--set", "optimizer.lr=1e6")
        assert (
            code == 3
            and "step 2, rows 4 to 7 of pass 1" in message
            and "--set optimizer.lr=" in message
        )
        assert "Traceback" not in message and len(read_log(tmp_path / "out")) == 1


class TestRun:
    def test_it_leaves_what_it_promises(self, whole: Path, recipe: Path, text: Path) -> None:
        assert {path.name for path in whole.iterdir()} == {
            "corpus",
            "main",
            "provenance.json",
            "state",
            "train.json",
            "train.jsonl",
        }
        record = json.loads((whole / "train.json").read_text(encoding="utf-8"))
        assert record["recipe"]["optimizer"]["lr"] == 1e-3 and record["corpus"] == text.name
        assert open_checkpoint(str(whole / "main")).methods[:2] == ["causal", "mlm"]
        assert "12" in (whole / "main" / "README.md").read_text(encoding="utf-8")
        assert (whole / "main" / "ltg_bert.py").exists()

    def test_the_log_has_a_line_per_step_and_one_switch(self, whole: Path) -> None:
        result = read_log(whole)
        assert [record["step"] for record in result] == list(range(1, STEPS + 1))
        assert [[*record["loss"]] for record in result] == [["clm"]] * 6 + [["mlm"]] * 6
        assert [(record["step"], record["switch"]) for record in result if "switch" in record] == [
            (7, "mlm")
        ]
        assert all(record.keys() >= {"words", "tokens", "lr", "norm"} for record in result)

    @pytest.mark.parametrize("options", [(), ("--resume",)])
    def test_a_finished_run_is_left_alone(
        self, run_train: RunTrain, whole: Path, options: tuple[str, ...]
    ) -> None:
        before = read_files(whole)
        assert run_train(*options, out=whole)[0] == 0
        assert read_files(whole) == before

    def test_a_finished_run_without_its_checkpoint_writes_it_again(
        self, run_train: RunTrain, whole: Path, tmp_path: Path
    ) -> None:
        out = Path(shutil.copytree(whole, tmp_path / "out"))
        shutil.rmtree(out / "main")
        assert run_train()[0] == 0
        assert read_weights(out) == read_weights(whole) and read_log(out) == read_log(whole)
        assert (out / "train.json").read_bytes() == (whole / "train.json").read_bytes()

    @pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
    def test_a_finished_run_with_a_damaged_checkpoint_is_an_error(
        self, run_train: RunTrain, whole: Path, tmp_path: Path, name: str
    ) -> None:
        out = Path(shutil.copytree(whole, tmp_path / "out"))
        with (out / "main" / name).open("ab") as file:
            file.write(b" ")
        code, message = run_train()
        assert code == 3 and f"{name} is changed since the training finished" in message
        (out / "main" / name).unlink()
        code, message = run_train()
        assert code == 3 and f"{name} is missing" in message and f"delete {out}/main" in message
        shutil.rmtree(out / "state")
        shutil.rmtree(out / "main")
        assert run_train()[0] == 3

    @pytest.mark.long
    def test_batch_tokens_and_states_change_nothing(
        self, run_train: RunTrain, whole: Path, tmp_path: Path
    ) -> None:
        assert run_train("--batch-tokens", "16", "--save-every", "0")[0] == 0
        ours, theirs = (
            load_file(out / "main" / "model.safetensors") for out in (tmp_path / "out", whole)
        )
        assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)

    @pytest.mark.long
    def test_the_same_text_from_the_grammar(self, run_train: RunTrain, tmp_path: Path) -> None:
        assert run_train("--set", "corpus.words=200", corpus="nano")[0] == 0
        assert read_log(tmp_path / "out")[-1]["step"] == STEPS

    def test_a_recipe_that_extends_a_shipped_one(self, run_train: RunTrain, tmp_path: Path) -> None:
        lines = ['extends = "babyllama"']
        lines += ["[scale.tiny.model]", "layers = 1", "hidden = 16", "heads = 2", "ffn = 24"]
        lines += ["[scale.tiny.tokenizer]", "vocabulary = 300"]
        lines += ["[scale.tiny.batch]", "tokens = 64", "length = 16"]
        lines += ["[[scale.tiny.phase]]", "steps = 3", "causal = 1"]
        own = write_recipe(tmp_path, "own", "\n".join(lines) + "\n")
        assert run_train("--scale", "tiny", recipe=own)[0] == 0
        assert (
            json.loads((tmp_path / "out" / "main" / "config.json").read_text())["antlm_bench"][
                "recipe"
            ]
            == "own"
        )

    @pytest.mark.long
    def test_milestones_are_scored_as_the_recipe_says(
        self, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(schedule, "MILLION", 100)
        monkeypatch.setattr(schedule, "MILESTONES", (300,))
        own = write_recipe(tmp_path, text=RECIPE + '[evaluate]\nsuites = ["nano"]\nlimit = 2\n')
        scoring = commands_score.score

        def killed(models: str, *rest: Any, **settings: Any) -> Any:
            if models.endswith("main"):
                raise KeyboardInterrupt
            return scoring(models, *rest, **settings)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(commands_score, "score", killed)
            train(str(own), str(text), tmp_path / "out", TrainOptions(device="cpu"))
        train(str(own), str(text), tmp_path / "out", TrainOptions(device="cpu"))
        scored = [record for record in read_log(tmp_path / "out") if "scores" in record]
        assert [record["checkpoint"] for record in scored] == ["chck_3M", "main"], (
            "also after a kill while scoring"
        )
        for record in scored:
            assert [one["method"] for one in record["scores"]] == ["causal", "mlm"]
            run = runs.open_run(tmp_path / "out" / "scores" / record["checkpoint"])
            result = [cell.summary.headline.value for cell in run.cells]
            assert [one["score"] for one in record["scores"]] == result and all(
                0 <= value <= 1 for value in result
            )

    def test_trackers_are_told_every_step(self, recipe: Path, text: Path, tmp_path: Path,
                                          monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
        import accelerate
        import accelerate.accelerator

        records: list[Any] = []
        monkeypatch.setattr(verb, "_check_trackers", lambda _: None)
        monkeypatch.setattr(accelerate.accelerator, "filter_trackers", lambda *_: ["tensorboard"])
        monkeypatch.setattr(
            accelerate.Accelerator, "init_trackers", lambda _, name, config: records.append(name)
        )
        monkeypatch.setattr(
            accelerate.Accelerator, "log", lambda _, values, step: records.append((step, *values))
        )
        monkeypatch.setattr(accelerate.Accelerator, "end_training", lambda _: records.append("end"))
        train(
            str(recipe),
            str(text),
            tmp_path / "out",
            TrainOptions(device="cpu", trackers=["tensorboard"]),
        )
        assert records[0] == "tiny" and records[-1] == "end"
        assert records[1] == (1, "loss/clm", "lr", "norm") and records[-2] == (
            STEPS,
            "loss/mlm",
            "lr",
            "norm",
        )


class TestTeachers:
    @pytest.fixture
    def student(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A distilled recipe and its two teachers, findable by name."""
        (tmp_path / "own" / "models").mkdir(parents=True)
        monkeypatch.setenv("ANTLM_BENCH_PATH", str(tmp_path / "own"))
        folder = tmp_path / "own" / "models"
        write_recipe(folder, "wide", CAUSAL.replace("hidden = 16", "hidden = 32"))
        write_recipe(folder, "deep", CAUSAL.replace("layers = 1", "layers = 2"))
        words = CAUSAL + '[distil]\nteachers = ["wide", "deep"]\ntemperature = 2.0\nalpha = 0.5\n'
        return write_recipe(folder, "student", words)

    @pytest.mark.long
    def test_they_are_trained_first_or_given(
        self, student: Path, text: Path, tmp_path: Path
    ) -> None:
        train("student", str(text), tmp_path / "a", TrainOptions(device="cpu", changes=["seed=7"]))
        taught = tmp_path / "a" / "teachers"
        assert sorted(path.name for path in taught.iterdir()) == ["deep", "wide"]
        card = json.loads((taught / "deep" / "main" / "config.json").read_text())
        assert card["num_hidden_layers"] == 2 and card["antlm_bench"]["seed"] == 7
        given = [str(taught / name / "main") for name in ("wide", "deep")]
        train(
            "student",
            str(text),
            tmp_path / "b",
            TrainOptions(device="cpu", changes=["seed=7"], teachers=given),
        )
        assert not (tmp_path / "b" / "teachers").exists()
        assert read_weights(tmp_path / "a") == read_weights(tmp_path / "b")
        alone = [*map(str, ("seed=7", "distil.alpha=1.0"))]
        train(
            "student",
            str(text),
            tmp_path / "c",
            TrainOptions(device="cpu", changes=alone, teachers=given),
        )
        assert read_weights(tmp_path / "a") != read_weights(tmp_path / "c")

    @pytest.mark.long
    def test_the_same_recipe_twice_is_two_models(
        self, student: Path, text: Path, tmp_path: Path
    ) -> None:
        twins = 'distil.teachers=["wide", "wide"]'
        train(
            "student",
            str(text),
            tmp_path / "a",
            TrainOptions(device="cpu", changes=[twins, "seed=7"]),
        )
        taught = tmp_path / "a" / "teachers"
        cards = [
            json.loads((taught / name / "main" / "config.json").read_text())
            for name in ("wide", "wide-2")
        ]
        assert [card["antlm_bench"]["seed"] for card in cards] == [7, 8]
        assert read_weights(taught / "wide") != read_weights(taught / "wide-2")

    def test_too_few_are_refused(self, student: Path, text: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="teachers given: 1, but student has 2: wide, deep"):
            train(
                "student", str(text), tmp_path / "out", TrainOptions(device="cpu", teachers=["x"])
            )
        assert not (tmp_path / "out").exists()

    def test_another_tokenizer_is_refused(
        self, student: Path, text: Path, tmp_path: Path, whole: Path
    ) -> None:
        other = tmp_path / "other"
        train(
            "wide",
            str(text),
            other,
            TrainOptions(device="cpu", changes=["tokenizer.vocabulary=280"]),
        )
        with pytest.raises(CheckpointError, match="another tokenizer") as error:
            train(
                "student",
                str(text),
                tmp_path / "out",
                TrainOptions(device="cpu", teachers=[str(other / "main"), str(other / "main")]),
            )
        assert error.value.location == str(other / "main")

    def test_one_that_is_not_there_is_named(
        self, student: Path, text: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(CheckpointError) as error:
            train("student", str(text), tmp_path / "out",
                  TrainOptions(device="cpu", teachers=["./absent", "./absent"]))  # fmt: skip
        assert "absent" in str(error.value)

    @pytest.mark.long
    def test_other_teachers_are_another_run(
        self, student: Path, text: Path, tmp_path: Path
    ) -> None:
        names = ["wide", "deep"]
        for name in names:
            train(name, str(text), tmp_path / name, TrainOptions(device="cpu"))
        wide, deep = (str(tmp_path / name / "main") for name in names)
        one = TrainOptions(device="cpu", teachers=[wide, deep], stop_after=3)
        others: list[list[str]] = [[deep, deep], []]
        for stop_after in (3, None):
            train("student", str(text), tmp_path / "out", replace(one, stop_after=stop_after))
            before = read_files(tmp_path / "out")
            for teachers in others:
                with pytest.raises(UsageError, match=r"the folder holds another run: .*teachers"):
                    train(
                        "student",
                        str(text),
                        tmp_path / "out",
                        replace(one, teachers=teachers, stop_after=None),
                    )
            assert read_files(tmp_path / "out") == before
        swapped = replace(one, teachers=[deep, wide], stop_after=None)
        assert train("student", str(text), tmp_path / "out", swapped), "the mean has no order"
        recorded = json.loads((tmp_path / "out" / "train.json").read_text(encoding="utf-8"))[
            "teachers"
        ]
        expected = [hashlib.sha256(read_weights(tmp_path / name)).hexdigest() for name in names]
        assert recorded == {"given": True, "weights": expected}

    @pytest.mark.long
    def test_a_stopped_distillation_continues_bit_for_bit(
        self, student: Path, text: Path, tmp_path: Path
    ) -> None:
        """Stopped twice; teachers that are trained first, and the same ones given."""
        options = TrainOptions(device="cpu")
        train("student", str(text), tmp_path / "whole", options)
        taught = tmp_path / "whole" / "teachers"
        given = [str(taught / name / "main") for name in ("wide", "deep")]
        for name, teachers in (("first", []), ("given", given)):
            out = tmp_path / name
            for stop_after in (3, 4, None):
                stopped = replace(options, teachers=teachers, stop_after=stop_after)
                finished = train("student", str(text), out, stopped)
                assert (finished is None) == (stop_after is not None)
            assert read_weights(out) == read_weights(tmp_path / "whole")
            assert read_log(out) == read_log(tmp_path / "whole")

    @pytest.mark.long
    def test_a_record_without_teachers_still_continues(
        self, student: Path, text: Path, tmp_path: Path
    ) -> None:
        options = TrainOptions(device="cpu", stop_after=3)
        train("student", str(text), tmp_path / "out", options)
        file = tmp_path / "out" / "train.json"
        record = json.loads(file.read_text(encoding="utf-8"))
        assert [len(digest) for digest in record.pop("teachers")["weights"]] == [64, 64]
        file.write_text(json.dumps(record), encoding="utf-8")
        assert train("student", str(text), tmp_path / "out", replace(options, stop_after=None))
        assert "teachers" not in json.loads(file.read_text(encoding="utf-8")), (
            "nobody knows who taught the first steps"
        )

    @pytest.mark.long
    def test_teachers_trained_first_stay_the_same(
        self, student: Path, text: Path, tmp_path: Path
    ) -> None:
        options = TrainOptions(device="cpu", stop_after=3)
        train("student", str(text), tmp_path / "out", options)
        taught = tmp_path / "out" / "teachers"
        own = [str(taught / name / "main") for name in ("wide", "deep")]
        file = taught / "deep" / "main" / "model.safetensors"
        saved = file.read_bytes()
        save_file(
            {name: tensor + 1 for name, tensor in load_file(file).items()},
            file,
            metadata={"format": "pt"},
        )
        for teachers in ([], own):
            with pytest.raises((UsageError, RunError), match="teachers"):
                train(
                    "student",
                    str(text),
                    tmp_path / "out",
                    TrainOptions(device="cpu", teachers=teachers),
                )
        file.write_bytes(saved)
        assert train(
            "student", str(text), tmp_path / "out", TrainOptions(device="cpu", teachers=own)
        )

    @pytest.mark.long
    def test_teachers_trained_first_run_as_their_student(
        self, student: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = []
        pretrain = loop.pretrain

        def noted(
            training: Any, out: Path, watcher: Any, conditions: loop.RuntimeSettings
        ) -> Path | None:
            seen.append(
                (
                    conditions.micro_batch_tokens,
                    conditions.save_every_minutes,
                    training.micro_batch_tokens,
                )
            )
            return pretrain(training, out, watcher, conditions)

        monkeypatch.setattr(loop, "pretrain", noted)
        train(
            "student",
            str(text),
            tmp_path / "out",
            TrainOptions(device="cpu", micro_tokens=32, save_every=7.0),
        )
        assert seen == [(32, 7.0, 32)] * 3

    def test_a_teacher_that_reads_other_tokens_is_refused(
        self, student: Path, text: Path, tmp_path: Path
    ) -> None:
        student.write_text(
            student.read_text().replace('document = "line"', 'document = "line"\neos = true')
        )
        with pytest.raises(DeclarationError, match="wide cannot teach student") as error:
            train("student", str(text), tmp_path / "out", TrainOptions(device="cpu"))
        assert error.value.location == "student: corpus.eos" and not (tmp_path / "out").exists()

    @pytest.mark.long
    def test_they_read_what_the_student_is_told_to_read(
        self, student: Path, text: Path, tmp_path: Path
    ) -> None:
        train(
            "student",
            str(text),
            tmp_path / "out",
            TrainOptions(device="cpu", changes=["corpus.words=200"]),
        )
        record = json.loads((tmp_path / "out" / "teachers" / "wide" / "train.json").read_text())
        assert record["recipe"]["corpus"]["words"] == 200


class Ended(BaseException):
    """Stands for the end of the process."""


@contextmanager
def handler_raises(signum: int) -> Iterator[None]:
    """Let a signal raise Ended, where the command line ends the process."""

    def end(*_: object) -> None:
        raise Ended

    before = signal.signal(signum, end)
    try:
        yield
    finally:
        signal.signal(signum, before)


class TestInterruptions:
    @pytest.mark.long
    @pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
    def test_a_signal_saves_and_the_same_command_finishes(
        self,
        run_train: RunTrain,
        whole: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        name: str,
    ) -> None:
        step, signum = loop.Trainer.train_step, getattr(signal, name)

        def interrupted(self: loop.Trainer, at: Any) -> dict[str, Any]:
            if at.index == 6:
                signal.raise_signal(signum)
            return step(self, at)

        with monkeypatch.context() as patch, handler_raises(signum), pytest.raises(Ended):
            patch.setattr(loop.Trainer, "train_step", interrupted)
            run_train()
        assert [path.name for path in (tmp_path / "out" / "state").iterdir()] == ["00000007"]
        assert len(read_log(tmp_path / "out")) == 7
        assert run_train("--resume")[0] == 0
        assert read_weights(tmp_path / "out") == read_weights(whole) and read_log(
            tmp_path / "out"
        ) == read_log(whole)

    def test_a_repeated_signal_does_not_wait_for_the_step(
        self, run_train: RunTrain, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(self: loop.Trainer, at: Any) -> dict[str, Any]:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            raise AssertionError("not stopped")

        monkeypatch.setattr(loop.Trainer, "train_step", interrupted)
        with handler_raises(signal.SIGTERM), pytest.raises(Ended):
            run_train()

    @pytest.mark.long
    def test_a_full_disk_is_named_and_costs_nothing_older(
        self, run_train: RunTrain, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save, calls = checkpoint_io.save_file, []

        def full(*given: Any) -> None:
            calls.append(given)
            if len(calls) == 5:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            save(*given)

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint_io, "save_file", full)
            code, message = run_train("--save-every", "0")
        assert code == 3 and "No space left on device" in message and "Traceback" not in message
        assert [path.name for path in (tmp_path / "out" / "state").iterdir()] == ["00000004"]
        assert run_train()[0] == 0
        assert read_weights(tmp_path / "out") == read_weights(whole) and read_log(
            tmp_path / "out"
        ) == read_log(whole)

    def test_half_a_line_in_the_log_is_taken_back(
        self, run_train: RunTrain, recipe: Path, text: Path, tmp_path: Path, whole: Path
    ) -> None:
        train(str(recipe), str(text), tmp_path / "out", TrainOptions(device="cpu", stop_after=5))
        with (tmp_path / "out" / "train.jsonl").open("a", encoding="utf-8") as log:
            log.write('{"step": 6, "loss": {"clm": 1.5}')
        assert run_train()[0] == 0 and read_log(tmp_path / "out") == read_log(whole)

    def test_an_error_leaves_the_folder_free(
        self, run_train: RunTrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: Any) -> dict[str, Any]:
            raise TrainingError("broken")

        with monkeypatch.context() as patch:
            patch.setattr(loop.Trainer, "train_step", broken)
            assert run_train()[0] == 3
        assert not (tmp_path / "out" / ".lock").exists() and run_train()[0] == 0


# Killed at these calls: (where, its name there, which call, before or after it is done).
KILLS = [
    ("antlm_bench.training.corpus", "_write_token_stream", 1, "after"),
    ("antlm_bench.training.pretrain.Trainer", "train_step", 3, "before"),
    ("antlm_bench.training.checkpoint_io", "save_file", 4, "after"),
    ("antlm_bench.training.checkpoint_io.Path", "rename", 6, "before"),
    ("antlm_bench.training.checkpoint_io.Path", "rename", 6, "after"),
    ("antlm_bench.atomic_files.shutil", "rmtree", 6, "after"),
    ("antlm_bench.training.checkpoint_io.registration", "add_remote_code", 2, "after"),
]
DRIVER = """
import json, os, pkgutil, signal, sys
from pathlib import Path
from antlm_bench.commands.train import TrainOptions, train
from antlm_bench.training import checkpoint_io, corpus, pretrain, schedule

recipe, text, root, kills = sys.argv[1:4] + [json.loads(sys.argv[4])]
schedule.MILLION, schedule.MILESTONES = 100, (400,)

def kill_at(where, name, call, moment):
    place, calls = pkgutil.resolve_name(where), []
    original = getattr(place, name)
    def deadly(*given, **named):
        calls.append(None)
        if len(calls) == call and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        made = original(*given, **named)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return made
    setattr(place, name, deadly)

def child(out, kill=None):
    pid = os.fork()
    if not pid:
        if kill:
            kill_at(*kill)
        train(recipe, text, out, TrainOptions(device="cpu", save_every=0.0))
        os._exit(0)
    return os.waitpid(pid, 0)[1]

assert child(Path(root) / "whole") == 0
for number, kill in enumerate(kills):
    out = Path(root) / str(number)
    print(json.dumps([child(out, kill), sorted(p.name for p in out.glob("*")), child(out)]),
          flush=True)
"""


@pytest.mark.long
def test_a_run_killed_at_any_moment_continues_bit_for_bit(
    recipe: Path, text: Path, tmp_path: Path
) -> None:
    """SIGKILL in steps and while saving. One process forks, so torch is loaded once."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        DRIVER,
        str(recipe),
        str(text),
        str(tmp_path),
        json.dumps(KILLS),
    ]
    done = subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    outcomes = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(outcomes) == len(KILLS)
    whole = tmp_path / "whole"
    assert {path.name for path in whole.iterdir()} >= {"chck_4M", "main"}
    for number, (kill, (killed, _, finished)) in enumerate(zip(KILLS, outcomes, strict=True)):
        out = tmp_path / str(number)
        assert (killed, finished) == (signal.SIGKILL, 0), kill
        assert {str(path.relative_to(out)) for path in out.rglob("*")} == {
            str(path.relative_to(whole)) for path in whole.rglob("*")
        }, f"{kill}: nothing is left behind"
        assert read_log(out) == read_log(whole), kill
        for checkpoint in ("chck_4M", "main"):
            assert read_weights(out, checkpoint) == read_weights(whole, checkpoint), kill


@pytest.mark.long
def test_sigterm_stops_a_command_after_its_first_step(
    recipe: Path, text: Path, tmp_path: Path
) -> None:
    """The nano scale of a shipped recipe."""
    out, log = tmp_path / "out", tmp_path / "out" / "train.jsonl"
    command = [
        *PROGRAM,
        "train",
        "babyllama",
        "--scale",
        "nano",
        "--corpus",
        "nano",
        "--out",
        str(out),
    ]
    with subprocess.Popen(
        [*command, "--out", str(out), "--device", "cpu"],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while not (log.exists() and log.stat().st_size):
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.02)
        process.terminate()
        _, message = process.communicate()
    assert process.returncode == 75 and "stopped by SIGTERM" in message, message
    assert len([*(out / "state").iterdir()]) == 1 and not (out / "main").exists()


@pytest.mark.long
def test_two_processes_learn_what_one_does(
    recipe: Path, text: Path, tmp_path: Path, whole: Path
) -> None:
    """Accelerate's launcher starts several CPU processes under --multi_gpu only; --device cpu makes
    them use gloo.
    """
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
    ]
    launch += [
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "0",
    ]
    command = [
        *launch,
        "-m",
        *PROGRAM[2:],
        "train",
        str(recipe),
        "--corpus",
        str(text),
        "--device",
        "cpu",
    ]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], env=ENVIRONMENT, capture_output=True,
        text=True, timeout=200,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("checkpoint") == 1, "one of them speaks"
    ours, theirs = (
        load_file(out / "main" / "model.safetensors") for out in (tmp_path / "out", whole)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)
    for one, other in zip(read_log(tmp_path / "out"), read_log(whole), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert (
            one["norm"] == pytest.approx(other["norm"], rel=1e-4)
            and one["tokens"] == other["tokens"]
        )
