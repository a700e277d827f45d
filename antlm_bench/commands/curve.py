"""`curve`: run folders of a model's checkpoints -> what each suite says of it over the words it has
seen.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from antlm_bench import runs
from antlm_bench.compare.summary_check import read_runs
from antlm_bench.errors import UsageError
from antlm_bench.reporting.results_table import make_printable, model_name
from antlm_bench.results.seeds import average_seeds
from antlm_bench.types import Cell, Estimate, Run

MILLION = 10**6
# BabyLM's: every million up to ten, every ten up to a hundred, every hundred up to a thousand.
MILESTONES = tuple(sorted({n * scale * MILLION for scale in (1, 10, 100) for n in range(1, 11)}))
MILESTONE_PATTERN = re.compile(
    r"(?:chck|ckpt|checkpoint|words)[_-]?(\d+(?:\.\d+)?)([KMB])$", re.IGNORECASE
)
WORD_COUNT_UNITS = {"K": 10**3, "M": MILLION, "B": 10**9}


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One checkpoint. words: seen by it. mark: the milestone it stands for. twin: an earlier one of
    equal weights.
    """

    words_seen: int
    milestone: int
    checkpoint: str
    estimate: Estimate
    duplicate_of: str = ""


@dataclass(frozen=True, slots=True)
class LearningCurve:
    """The headline of one suite under one method, for the checkpoints of one family, by words seen.

    marks: where the family has a checkpoint or, by its milestones, should have one; a mark without
    a point is a gap.
    """

    series_name: str
    suite: str
    method: str
    metric: str
    points: tuple[CurvePoint, ...]
    milestones: tuple[int, ...]

    @property
    def segments(self) -> list[list[CurvePoint]]:
        """The points, cut wherever a mark between two of them has none."""
        found: list[list[CurvePoint]] = []
        places = {mark: index for index, mark in enumerate(self.milestones)}
        for point in self.points:
            if found and places[point.milestone] - places[found[-1][-1].milestone] <= 1:
                found[-1].append(point)
            else:
                found.append([point])
        return found


def load_curves(
    paths: Sequence[str | Path], suites: Sequence[str] = ()
) -> tuple[list[LearningCurve], list[str]]:
    """(curves, names of runs that are in none: nothing says how many words they have seen).

    paths: run folders, or folders of them. suites: only these. Raises RunError, and UsageError
    where no run can be placed, a suite was not scored, or two checkpoints of a family claim one
    place.
    """
    opened = [average_seeds(run) for run in read_runs(expand_run_dirs(paths))]
    found = build_curves(opened)
    lost = [model_name(run) for run in opened if words_seen(run) is None]
    if not found:
        hint = "checkpoints named chck_1M, chck_2M, ... (as `train` and BabyLM write them) have one"
        raise UsageError(
            "no run says how many words its checkpoint has seen", location=str(paths[0]), hint=hint
        )
    if unknown := [suite for suite in suites if suite not in {one.suite for one in found}]:
        known = ", ".join(dict.fromkeys(one.suite for one in found))
        raise UsageError(
            f"no checkpoint has {unknown[0]!r}", location="--suite", hint=f"there are {known}"
        )
    return [one for one in found if one.suite in suites or not suites], lost


def draw_curves(learning_curves: Sequence[LearningCurve], path: Path, image_format: str) -> None:
    """Write the curves as one figure, a panel per suite. form: svg or png. Raises RunError."""
    from antlm_bench.reporting.figure_export import render_figures
    from antlm_bench.reporting.figures import learning_curve_figures

    runs.write_atomically(
        path, render_figures(list(learning_curve_figures(learning_curves)), image_format)
    )


def expand_run_dirs(paths: Sequence[str | Path]) -> list[Path]:
    """Run folders as they are; a folder of run folders as these, one level down."""
    found: list[Path] = []
    for path in map(Path, paths):
        inside = (
            []
            if (path / "run.json").exists()
            else [file.parent for file in path.glob("*/run.json")]
        )
        found += sorted(inside, key=_natural_sort_key) or [path]
    return list(dict.fromkeys(found))


def _natural_sort_key(path: Path) -> list[tuple[int, str]]:
    """chck_2M before chck_10M."""
    return [
        (int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", path.name)
    ]


def build_curves(all_runs: Sequence[Run]) -> list[LearningCurve]:
    """A curve per family, suite and method, in the order given; runs without a number of words are
    left out.

    Cells of a task that was finetuned have no place here unless their seeds were averaged before.
    Raises UsageError.
    """
    families = group_checkpoints(all_runs)
    taken = {milestone_or_words_seen(run) for members in families.values() for run in members}
    found = []
    for family, members in families.items():
        seen = {milestone_or_words_seen(run) for run in members}
        wanted = taken | set(MILESTONES if seen & set(MILESTONES) else ())
        marks = tuple(sorted(seen | {one for one in wanted if min(seen) < one < max(seen)}))
        for suite, method in dict.fromkeys(
            (c.suite, c.method) for run in members for c in run if c.seed is None
        ):
            points, metric = _build_points(family, members, suite, method)
            found.append(LearningCurve(family, suite, method, metric, points, marks))
    return found


def group_checkpoints(all_runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Checkpoints by family: those of one hub id, or whose runs share a folder, architecture and
    tokenizer.
    """
    keys: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for run in all_runs:
        if words_seen(run) is not None:
            keys[checkpoint_series_key(run)].append(run)
    names = _name_series(list(keys))
    return {
        name: sorted(keys[key], key=lambda run: words_seen(run) or 0) for name, key in names.items()
    }


def words_seen(run: Run) -> int | None:
    """As the checkpoint's card says; else as its name does (`chck_10M`); else None."""
    said = run.manifest.model.get("words_seen")
    if isinstance(said, int | float) and not isinstance(said, bool) and 0 < said < float("inf"):
        return round(said)
    return parse_milestone(run)


def milestone_or_words_seen(run: Run) -> int:
    """The milestone that a checkpoint is named for; it is saved with the first step that passes it,
    a little later.
    """
    return parse_milestone(run) or words_seen(run) or 0


def format_word_count(words: float) -> str:
    """`300k`, `10M`, `1.5B` words."""
    unit, name = next(
        ((u, n) for u, n in ((10**9, "B"), (MILLION, "M"), (10**3, "k")) if words >= u), (1, "")
    )
    return f"{words / unit:.3g}{name}"


def parse_milestone(run: Run) -> int | None:
    """Words seen, as the checkpoint's name says (`chck_10M`); None where it says nothing (`main`)."""
    found = MILESTONE_PATTERN.search(str(run.manifest.model.get("name", "")))
    words = round(float(found[1]) * WORD_COUNT_UNITS[found[2].upper()]) if found else 0
    return words or None


def checkpoint_series_key(run: Run) -> tuple[str, ...]:
    """The folders around the run (a training folder keeps its runs in `scores`), or the hub id;
    then what it is.
    """
    name = str(run.manifest.model.get("name", ""))
    folder = Path(run.path).absolute().parent
    folder = folder.parent if folder.name == "scores" else folder
    place = (name.partition("@")[0],) if "@" in name else folder.parts
    about = run.manifest.model
    return (*place, str(about.get("architecture", "")), str(about.get("tokenizer", "")))


def _name_series(series_keys: Sequence[tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """A short name for each family: its folder; where that is shared, its architecture or the
    folders above.
    """
    for depth in range(1, max(map(len, series_keys), default=0) + 1):
        short = ["/".join(key[:-2][-depth:]) for key in series_keys]
        full = [
            f"{name} ({key[-2]})" if short.count(name) > 1 else name
            for name, key in zip(short, series_keys, strict=True)
        ]
        if len(set(full)) == len(full):
            return {make_printable(name): key for name, key in zip(full, series_keys, strict=True)}
    return {
        f"{'/'.join(map(make_printable, key[:-1]))} ({n})": key
        for n, key in enumerate(series_keys, 1)
    }


def _build_points(
    series_name: str, checkpoint_runs: Sequence[Run], suite: str, method: str
) -> tuple[tuple[CurvePoint, ...], str]:
    """A suite's points by words seen, and its metric. UsageError where two checkpoints claim one
    place.
    """
    first: dict[str, str] = {}  # weights -> the checkpoint that had them first
    found: dict[int, tuple[str, CurvePoint]] = {}
    metric = ""
    for run, cell in _iter_matching_cells(checkpoint_runs, suite, method):
        name, metric = model_name(run), cell.summary.metric
        weights = str(run.manifest.model.get("weights") or run.path)
        twin = first.setdefault(weights, name)
        point = CurvePoint(
            words_seen(run) or 0,
            milestone_or_words_seen(run),
            name,
            cell.summary.headline,
            "" if twin == name else twin,
        )
        if found.setdefault(point.milestone, (weights, point))[0] != weights:
            raise UsageError(
                f"two checkpoints of {series_name} have seen {format_word_count(point.milestone)} words: which one is on the curve?",
                location=run.path,
                hint="keep the runs of each model in a folder of its own (score --out DIR)",
            )
    return tuple(point for _, point in found.values()), metric


def _iter_matching_cells(
    checkpoint_runs: Sequence[Run], suite: str, method: str
) -> Iterator[tuple[Run, Cell]]:
    for run in checkpoint_runs:
        for cell in run:
            if (cell.suite, cell.method, cell.seed) == (suite, method, None):
                yield run, cell
