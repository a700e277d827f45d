"""The progress of whole commands: one per command, and its counts are those of the work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from score_helpers import make_agreement_rows, write_pairs

from antlm_bench.commands.finetune import finetune
from antlm_bench.commands.noise import measure_noise
from antlm_bench.commands.score import score
from antlm_bench.commands.surprisal import surprisal
from antlm_bench.errors import IncompleteError
from antlm_bench.progress import Progress
from antlm_bench.scoring import multiple_choice

Make = Callable[..., Path]


@pytest.fixture
def ended_progress(monkeypatch: pytest.MonkeyPatch) -> list[Progress]:
    """Each Progress that has ended."""
    ended: list[Progress] = []
    original = Progress.__exit__

    def end(self: Progress, *arguments: Any) -> None:
        ended.append(self)
        original(self, *arguments)

    monkeypatch.setattr(Progress, "__exit__", end)
    return ended


@pytest.fixture
def pairs(tmp_path: Path) -> list[str]:
    """Two suites of 40 and 10 pairs."""
    rows = make_agreement_rows()
    return [
        str(write_pairs(tmp_path / "large.csv", rows)),
        str(write_pairs(tmp_path / "small.csv", rows[:10])),
    ]


def read_counts(progress: Progress) -> tuple[int, int, int]:
    return progress.num_done, progress.total, progress.num_computed


@pytest.mark.long
def test_score_counts_checkpoints_suites_and_methods(
    make_checkpoint: Make,
    pairs: list[str],
    tmp_path: Path,
    ended_progress: list[Progress],
    capsys: pytest.CaptureFixture[str],
) -> None:
    models = [str(make_checkpoint("masked", seed=seed)) for seed in (0, 1)]
    score(models, pairs[0], methods=["mlm", "mntp"], out=tmp_path / "runs", device="cpu")
    assert [read_counts(each) for each in ended_progress] == [(160, 160, 160)]
    assert ended_progress[0].num_tokens > 160 and ended_progress[0].seconds_left == 0

    # The first suite is there; a third method of it, and the second suite, are not.
    methods = ["mlm", "mntp", "mlm-l2r"]
    score(models, pairs, methods=methods, out=tmp_path / "runs", device="cpu")
    assert read_counts(ended_progress[1]) == (300, 300, 2 * (40 + 30))
    assert capsys.readouterr().out == ""


@pytest.mark.long
def test_score_counts_no_suite_that_fails(
    make_checkpoint: Make, pairs: list[str], tmp_path: Path, ended_progress: list[Progress]
) -> None:
    too_long = str(write_pairs(tmp_path / "long.csv", [{"good": "the " * 600, "bad": "a " * 600}]))
    with pytest.raises(IncompleteError):
        score(str(make_checkpoint()), [too_long, pairs[1]], out=tmp_path / "run", device="cpu")
    assert ended_progress[0].num_done == ended_progress[0].total


@pytest.mark.long
def test_score_counts_the_items_of_its_shard(
    make_checkpoint: Make,
    pairs: list[str],
    tmp_path: Path,
    ended_progress: list[Progress],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def iter_small_chunks(items: Any, _methods: Any) -> Any:
        return (items[start : start + 6] for start in range(0, len(items), 6))

    monkeypatch.setattr(multiple_choice, "iter_chunks", iter_small_chunks)
    # Seven chunks, of which the second shard has the second, fourth and sixth.
    settings: dict[str, Any] = {"out": tmp_path / "part", "device": "cpu", "shard": "2/2"}
    score(str(make_checkpoint()), pairs[0], **settings)
    assert read_counts(ended_progress[0]) == (18, 18, 18)


@pytest.mark.long
def test_surprisal_counts_characters_of_all_models(
    make_checkpoint: Make, ended_progress: list[Progress]
) -> None:
    models = [str(make_checkpoint(seed=seed)) for seed in (0, 1)]
    surprisal(models, ["the cat sees a dog.", "a girl sleeps."], device="cpu")
    [progress] = ended_progress
    assert read_counts(progress) == (66, 66, 66) and progress.num_tokens > 0


@pytest.mark.long
def test_noise_counts_conditions(
    make_checkpoint: Make, pairs: list[str], ended_progress: list[Progress]
) -> None:
    measure_noise(str(make_checkpoint()), pairs[1], conditions=["adaptive"])
    assert [read_counts(each) for each in ended_progress] == [(20, 20, 20)]


@pytest.mark.long
def test_finetune_counts_tasks_times_seeds_times_epochs(
    make_checkpoint: Make, tmp_path: Path, ended_progress: list[Progress]
) -> None:
    for name, count in (("train.csv", 24), ("valid.csv", 8)):
        lines = [f"the cat {('sees', 'sleeps')[n % 2]} {n},{n % 2}\n" for n in range(count)]
        (tmp_path / name).write_text("text,label\n" + "".join(lines))
    settings: dict[str, Any] = {
        "valid": str(tmp_path / "valid.csv"),
        "changes": ["epochs=2", "max_length=32"],
        "out": tmp_path / "run",
        "device": "cpu",
    }
    train = str(tmp_path / "train.csv")
    finetune(str(make_checkpoint()), train, seeds=[1, 2], **settings)
    assert [read_counts(each) for each in ended_progress] == [(96, 96, 96)]
    finetune(str(make_checkpoint()), train, seeds=[1, 2, 3], **settings)
    assert read_counts(ended_progress[1]) == (144, 144, 48)
