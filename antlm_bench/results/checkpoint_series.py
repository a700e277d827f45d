"""Series of checkpoints in order of the words they have seen, and their learning curves."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from antlm_bench.comparison.summary_check import open_verified_runs
from antlm_bench.errors import UsageError
from antlm_bench.metrics import get_metric_spec
from antlm_bench.printable import make_printable
from antlm_bench.results.collections import CAVEAT_PATTERN
from antlm_bench.results.display_names import model_name
from antlm_bench.results.seeds import average_seeds
from antlm_bench.runs import download_runs
from antlm_bench.statistics import Z
from antlm_bench.types import Cell, Estimate, Run

MILLION = 10**6
MILESTONES = tuple(sorted({n * scale * MILLION for scale in (1, 10, 100) for n in range(1, 11)}))
"""BabyLM's milestones in words: 1M, 2M, ..., 10M, 20M, ..., 100M, 200M, ..., 1000M."""
MILESTONE_PATTERN = re.compile(
    r"(?:chck|ckpt|checkpoint|words)[_-]?(\d+(?:\.\d+)?)([KMB])$", re.IGNORECASE
)
WORD_COUNT_UNITS = {"K": 10**3, "M": MILLION, "B": 10**9}


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One checkpoint on a learning curve."""

    words_seen: int
    milestone: int
    """Words in the checkpoint's name (`chck_10M`: 10,000,000), or else its words seen."""
    checkpoint: str
    """Name of the checkpoint."""
    estimate: Estimate
    duplicate_of: str = ""
    """Name of an earlier checkpoint with the same weights."""
    caveats: tuple[str, ...] = ()
    """Notes that qualify the score (collections.CAVEAT_PATTERN)."""


@dataclass(frozen=True, slots=True)
class LearningCurve:
    """The headline of one suite and method for each checkpoint of one series."""

    series_name: str
    suite: str
    method: str
    metric: str
    points: tuple[CurvePoint, ...]
    """In order of words seen."""
    milestones: tuple[int, ...]
    """Milestones at which the series has a checkpoint or should have one. A milestone without a
    point is a gap."""
    other_items: tuple[str, ...] = ()
    """Checkpoints without a point, because they were scored on other items than the last one: with
    --limit, or in another version of the suite."""

    @property
    def best_point(self) -> CurvePoint:
        """The checkpoint with the best value; the first of equals."""
        sign = -1 if get_metric_spec(self.metric).lower_is_better else 1
        return max(self.points, key=lambda point: sign * point.estimate.value)

    @property
    def optimism(self) -> float | None:
        """Upper bound of the mean amount by which the best value is better than the true value of
        its checkpoint, in the unit of the metric. None for a single checkpoint.

        The largest of K normal errors, independent or not, is at most sqrt(2 ln K) standard errors
        on average (Boucheron, Lugosi & Massart 2013, section 2.5), whatever the true values. K
        counts the checkpoints whose values lie in the interval of the best, because the others are
        hardly ever the best by chance. The standard error is that of the widest 95% interval among
        these: half its width, divided by 1.96.
        """
        if sum(not point.duplicate_of for point in self.points) < 2:
            return None
        best = self.best_point.estimate
        # The best counts by itself: intervals need not hold their values.
        rivals = [best] + [
            point.estimate
            for point in self.points
            if not point.duplicate_of
            and point.estimate is not best
            and best.low <= point.estimate.value <= best.high
        ]
        half_width = max(estimate.high - estimate.low for estimate in rivals) / 2
        return math.sqrt(2 * math.log(len(rivals))) * half_width / Z

    @property
    def segments(self) -> list[list[CurvePoint]]:
        """The points, cut at gaps."""
        segments: list[list[CurvePoint]] = []
        indices = {milestone: index for index, milestone in enumerate(self.milestones)}
        for point in self.points:
            if segments and indices[point.milestone] - indices[segments[-1][-1].milestone] <= 1:
                segments[-1].append(point)
            else:
                segments.append([point])
        return segments


def expand_run_dirs(paths: Sequence[str | Path]) -> list[Path]:
    """Return run folders. A folder of run folders is replaced by the run folders in it, without
    hidden ones. The URL of an object store is replaced by its local copy.
    """
    run_dirs: list[Path] = []
    for path in map(download_runs, paths):
        if (path / "run.json").exists():
            run_dirs.append(path)
            continue
        subfolders = [file.parent for file in path.glob("[!.]*/run.json")]
        run_dirs += sorted(subfolders, key=_natural_sort_key) or [path]
    return list(dict.fromkeys(run_dirs))


def _natural_sort_key(path: Path) -> list[tuple[int, str]]:
    """Return a key that sorts chck_2M before chck_10M."""
    return [
        (int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", path.name)
    ]


def load_curves(
    paths: Sequence[str | Path], suites: Sequence[str] = ()
) -> tuple[list[LearningCurve], list[str]]:
    """Return learning curves, and the names of the models whose words seen are unknown.

    paths: run folders, or folders of them. suites: only these. Raises RunError, and UsageError if
    no run records words seen, if a suite was not scored, or if two checkpoints of a series have
    seen the same number of words.
    """
    all_runs = [average_seeds(run) for run in open_verified_runs(expand_run_dirs(paths))]
    curves = build_curves(all_runs)
    unplaced_models = [model_name(run) for run in all_runs if words_seen(run) is None]
    if not curves:
        raise UsageError(
            "no run records how many words its checkpoint has seen",
            location=str(paths[0]),
            hint="name the checkpoints chck_1M, chck_2M, ..., as `train` and BabyLM do",
        )
    suites_of_curves = list(dict.fromkeys(curve.suite for curve in curves))
    for suite in suites:
        if suite not in suites_of_curves:
            raise UsageError(
                f"no checkpoint was scored on {suite!r}",
                location="--suite",
                hint=f"there are {', '.join(suites_of_curves)}",
            )
    return [curve for curve in curves if not suites or curve.suite in suites], unplaced_models


def build_curves(all_runs: Sequence[Run]) -> list[LearningCurve]:
    """Return a learning curve per series, suite and method.

    Runs whose words seen are unknown are left out, and so are single finetuning seeds (see
    average_seeds). Raises UsageError if two checkpoints of a series have seen the same number of
    words.
    """
    runs_by_series = group_checkpoints(all_runs)
    milestones_by_series = {
        name: {milestone_or_words_seen(run) for run in members}
        for name, members in runs_by_series.items()
    }
    # The end of a training is a milestone of its own series only.
    milestones_of_all = {
        words for members in runs_by_series.values() for words in map(parse_milestone, members)
    }
    curves = []
    for series_name, members in runs_by_series.items():
        own_milestones = milestones_by_series[series_name]
        expected = {words for words in milestones_of_all if words}
        if own_milestones & set(MILESTONES):
            expected |= set(MILESTONES)
        first, last = min(own_milestones), max(own_milestones)
        expected = {milestone for milestone in expected if first < milestone < last}
        milestones = tuple(sorted(own_milestones | expected))
        for suite, method in dict.fromkeys(
            (cell.suite, cell.method) for run in members for cell in run if cell.seed is None
        ):
            curves.append(_build_curve(series_name, members, suite, method, milestones))
    return curves


def group_checkpoints(all_runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return name of a series -> its runs, sorted by words seen.

    A series consists of the checkpoints of one hub id, or of those that share a folder, an
    architecture and a tokenizer. Runs whose words seen are unknown are left out.
    """
    runs_by_key: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for run in all_runs:
        if words_seen(run) is not None:
            runs_by_key[checkpoint_series_key(run)].append(run)
    return {
        name: sorted(runs_by_key[key], key=lambda run: words_seen(run) or 0)
        for name, key in _name_series(list(runs_by_key)).items()
    }


def words_seen(run: Run) -> int | None:
    """Return the words seen from config.json, else from the name (`chck_10M`), or None."""
    words = run.manifest.model.get("words_seen")
    if isinstance(words, int | float) and not isinstance(words, bool) and 0 < words < float("inf"):
        return round(words)
    return parse_milestone(run)


def milestone_or_words_seen(run: Run) -> int:
    """Return the words in a checkpoint's name (`chck_10M`), or else its words seen.

    chck_10M is saved after the first step that passes 10M words, so it has seen slightly more.
    """
    return parse_milestone(run) or words_seen(run) or 0


def format_word_count(words: float) -> str:
    """Format a number of words: `300k`, `10M`, `1.5B`."""
    units = ((10**9, "B"), (MILLION, "M"), (10**3, "k"), (1, ""))
    size, suffix = next((unit for unit in units if words >= unit[0]), units[-1])
    return f"{words / size:.3g}{suffix}"


def parse_milestone(run: Run) -> int | None:
    """Return the words in the checkpoint's name: 10,000,000 for `chck_10M`, None for `main`."""
    match = MILESTONE_PATTERN.search(str(run.manifest.model.get("name", "")))
    words = round(float(match[1]) * WORD_COUNT_UNITS[match[2].upper()]) if match else 0
    return words or None


def checkpoint_series_key(run: Run) -> tuple[str, ...]:
    """Return (hub id, architecture, tokenizer), or (*parts of the checkpoint's parent folder, ...).

    Older runs do not record the checkpoint's path: the run's parent folder counts, without the
    folder `scores` in which `train` writes runs.
    """
    model = run.manifest.model
    name = str(model.get("name", ""))
    folder = Path(str(model.get("given") or "")).parent
    if folder == Path():
        folder = Path(run.path).absolute().parent
        folder = folder.parent if folder.name == "scores" else folder
    source = (name.partition("@")[0],) if "@" in name else folder.parts
    return (*source, str(model.get("architecture", "")), str(model.get("tokenizer", "")))


def _name_series(series_keys: Sequence[tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Return name -> key: as many last parts of the folder as make all names different.

    The architecture is added if two series share a folder.
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


def _build_curve(
    series_name: str,
    checkpoint_runs: Sequence[Run],
    suite: str,
    method: str,
    milestones: tuple[int, ...],
) -> LearningCurve:
    """Return a suite's curve by words seen, over the items that the last checkpoint was scored on.

    Raises UsageError if two checkpoints have seen the same number of words.
    """
    first_name_by_weights: dict[str, str] = {}
    points: dict[int, tuple[str, CurvePoint]] = {}  # milestone -> (hash of the weights, point)
    cells = list(_iter_matching_cells(checkpoint_runs, suite, method))
    last_cell = cells[-1][1]
    other_items = []
    for run, cell in cells:
        name = model_name(run)
        if _scored_items(cell) != _scored_items(last_cell):
            other_items.append(name)
            continue
        weights = str(run.manifest.model.get("weights") or run.path)
        first_name = first_name_by_weights.setdefault(weights, name)
        milestone = milestone_or_words_seen(run)
        duplicate_of = "" if first_name == name else first_name
        caveats = tuple(filter(CAVEAT_PATTERN.search, cell.summary.notes))
        point = CurvePoint(
            words_seen(run) or 0, milestone, name, cell.estimate, duplicate_of, caveats
        )
        if points.setdefault(milestone, (weights, point))[0] != weights:
            raise UsageError(
                f"two checkpoints of {series_name} have seen {format_word_count(milestone)} words",
                location=run.path,
                hint="keep the runs of each model in a folder of its own (score --out DIR)",
            )
    return LearningCurve(
        series_name,
        suite,
        method,
        last_cell.summary.metric,
        tuple(point for _, point in points.values()),
        milestones,
        tuple(other_items),
    )


def _scored_items(cell: Cell) -> tuple[object, ...]:
    """Return what identifies the items of a cell: equal for cells that scored the same items."""
    return (cell.settings.get("suite_digest") or cell.estimate.n, cell.settings.get("limit"))


def _iter_matching_cells(
    checkpoint_runs: Sequence[Run], suite: str, method: str
) -> Iterator[tuple[Run, Cell]]:
    for run in checkpoint_runs:
        for cell in run:
            if (cell.suite, cell.method, cell.seed) == (suite, method, None):
                yield run, cell
