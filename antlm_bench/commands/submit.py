"""submit: run folders in, the leaderboard's file out as the official collator writes it, or a list
of holes.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from antlm_bench import runs
from antlm_bench.declarations import decode_utf8, suggest_name
from antlm_bench.errors import DataError, IncompleteError, UsageError
from antlm_bench.exports import conventions, leaderboard
from antlm_bench.exports.command_hints import model_name
from antlm_bench.exports.leaderboard_file import LeaderboardFileBuilder, MissingPart, is_filled
from antlm_bench.exports.tie_rules import TieRule
from antlm_bench.reporting import results_table
from antlm_bench.scoring.methods import METHODS
from antlm_bench.suites import loader
from antlm_bench.types import Run, finetune_method

MILESTONE_PATTERN = re.compile(r"chck_(\d+)M")


@dataclass(frozen=True, slots=True)
class Submission:
    """A file that was written: where, its sha256, what it leaves empty (only where allowed), what
    to know of it.
    """

    path: Path
    digest: str
    missing: tuple[MissingPart, ...]
    notes: tuple[str, ...]


def submit(
    folders: Sequence[str | Path],
    *,
    year: str,
    track: str,
    out: str | Path,
    method: str = "",
    seed: int | None = None,
    parts: Mapping[str, str] | None = None,
    allow_partial: bool = False,
    allow_conventions: bool = False,
    ties: TieRule | None = None,
) -> Submission:
    """Write the file of a year and track from run folders: the final model's, and those of its
    milestones.

    out: the file, or a folder for one with the official name. method: of the zero-shot parts, "" =
    the only one there. seed: of the GLUE labels. parts: (dotted) key -> JSON file made elsewhere.
    allow_partial: holes are announced, not refused. allow_conventions: so are cells that are not by
    the year's conventions. ties: which of the best options is answered, None = the one that the
    year's official code takes. Raises IncompleteError (nothing is written) for holes, NotComparable
    for other conventions than the year's, UsageError for a choice that is not ours to make,
    RunError and DataError for what cannot be read.
    """
    board = leaderboard.load_leaderboard(year)
    milestones = board.milestones(track)
    final, checkpoints = split_final_and_milestones(
        [run for folder in folders for run in open_runs(folder)]
    )
    method = choose_method(method, final, board)
    check_same_model(final, [checkpoints[number] for number in milestones if number in checkpoints])
    given = {key: read_json(Path(path), f"--part {key}") for key, path in (parts or {}).items()}
    texts = lru_cache(1)(
        partial(loader.load_suite, allow_incomplete=True)
    )  # one suite is asked for at every milestone
    collation = LeaderboardFileBuilder(
        board, track, final, checkpoints, texts, method, seed, ties
    ).build(given)
    deviations = conventions.find_deviations(board, collation.written_sources, final)
    strangers = own_file_notes(board, [final, *checkpoints.values()])
    empty = not any(map(is_filled, collation.document.values()))
    if collation.missing and (empty or not allow_partial):
        listed = "\n".join(f"    {missing}" for missing in collation.missing)
        listed += "".join(f"\n  {sentence}" for sentence in strangers)
        message = f"{len(collation.missing)} parts of the {board.year} file are missing; nothing was written:\n{listed}"
        if deviations and not allow_conventions:
            also = "\n    ".join(conventions.describe_deviations(deviations))
            message += (
                f"\n  what is there is not all by the conventions of {board.name}:\n    {also}"
            )
        hint = "make them (a local checkpoint goes by its folder's name here: give its path), or write what there is with "
        hint += "--allow-partial; the leaderboard counts holes as 0"
        if empty:
            message = f"no part of the {board.year} file is there; nothing was written:\n{listed}"
            hint = "make them (a local checkpoint goes by its folder's name here: give its path)"
        raise IncompleteError(message, hint=hint)
    if deviations and not allow_conventions:
        raise conventions.deviation_error(board, deviations, method)
    leaderboard.validate_document(
        collation.document, board.name, missing_keys=[missing.key for missing in collation.missing]
    )
    notes = [f"as {board.source} writes it", *collation.notes, *strangers]
    notes += [
        f"NOT by the conventions of {board.name}: {line}"
        for line in conventions.describe_deviations(deviations)
    ]
    if milestones and (unused := sorted(checkpoints.keys() - set(milestones))):
        notes.append(
            f"{track} has no milestone {', '.join(f'chck_{number}M' for number in unused)}: left out"
        )
    path = output_path(
        Path(out), board.file.format(method=method, name=Path(model_name(final)).name or "model")
    )
    data = json.dumps(collation.document).encode()
    packed = ".gz" in (
        path.suffix,
        Path(board.file).suffix,
    )  # 2024's scorer unpacks a file of any name
    if packed and path.suffix != ".gz":
        notes.append(
            "the file is gzip, whatever its name: the official scorer of the year unpacks it"
        )
    runs.write_atomically(path, gzip.compress(data, mtime=0) if packed else data)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Submission(path, digest, collation.missing, tuple(notes))


def open_runs(folder: str | Path, read_run: Callable[[Path], Run] = runs.open_run) -> list[Run]:
    """The run in a folder, or those one level down. `submit` checks the summaries that it uses,
    part by part; other callers give `read_run`.
    """
    path = Path(folder)
    if not (path / "run.json").exists():
        inner = sorted(found.parent for found in path.glob("*/run.json"))
        if inner:
            return [read_run(one) for one in inner]
    return [read_run(path)]


def split_final_and_milestones(opened_runs: Sequence[Run]) -> tuple[Run, dict[int, Run]]:
    """(the final model's run, milestone in millions of words -> its run), by the checkpoints'
    names.

    A run whose checkpoint is called chck_<n>M is a milestone's; where all are, the last is the
    final model's too. Equal weights in two milestones are refused: a download that ignores its
    revision gives the same checkpoint n times.
    """
    milestones: dict[int, Run] = {}
    twins: dict[str, Run] = {}
    final: list[Run] = []
    for run in opened_runs:
        number = parse_milestone(run)
        if number is None:
            final.append(run)
        elif number in milestones:
            both = f"{milestones[number].path} and {run.path}"
            raise UsageError(
                f"two runs of chck_{number}M: {both}",
                location="RUN",
                hint="give the one that counts",
            )
        elif (twin := twins.setdefault(str(run.manifest.model.get("weights")), run)) is not run:
            message = f"{model_name(twin)} and {model_name(run)} have the same weights"
            raise UsageError(
                message,
                location=run.path,
                hint="score the checkpoints themselves: antlm-bench preflight",
            )
        else:
            milestones[number] = run
    if len(final) > 1:
        both = ", ".join(run.path for run in final)
        raise UsageError(
            f"{len(final)} runs of final models: {both}",
            location="RUN",
            hint="a file holds one model",
        )
    if not final and not milestones:
        raise UsageError(
            "no run given", location="RUN", hint="antlm-bench score ... writes run folders"
        )
    return (final[0] if final else milestones[max(milestones)]), milestones


def check_same_model(final_run: Run, milestone_runs: Sequence[Run]) -> None:
    """UsageError where a milestone is of another model than the final one."""
    for run in milestone_runs:
        for name, what in (
            ("architecture", "architecture"),
            ("vocabulary", "vocabulary"),
            ("parameters", "size"),
        ):
            ours, theirs = (one.manifest.model.get(name) for one in (final_run, run))
            if ours != theirs:
                message = f"{model_name(run)} has another {what} ({theirs}) than the final model {model_name(final_run)} ({ours})"
                raise UsageError(
                    message,
                    location=run.path,
                    hint="a file holds one model: give the runs of its own milestones",
                )


def parse_milestone(run: Run) -> int | None:
    """Millions of words, as a checkpoint's name tells them; None for a name that is no milestone's."""
    match = MILESTONE_PATTERN.fullmatch(re.split(r"[/@]", model_name(run).rstrip("/"))[-1])
    return int(match[1]) if match else None


def own_file_notes(board: leaderboard.LeaderboardSpec, opened_runs: Sequence[Run]) -> list[str]:
    """A sentence for each of the user's own files that goes by the name of a suite of the
    leaderboard.
    """
    wanted = {part.suite for part in (*board.part, *board.fast)}
    own = [
        (cell.suite, runs.base_suite_name(cell).partition(".")[0])
        for run in opened_runs
        for cell in run
        if runs.is_user_suite(cell)
    ]
    return [
        f"{results_table.make_printable(shown)} is a file of the user's and not the suite {name}: not counted"
        for shown, name in dict.fromkeys(own)
        if name in wanted
    ]


def choose_method(requested: str, run: Run, board: leaderboard.LeaderboardSpec) -> str:
    """The zero-shot method of the file: as asked, else the only one of the run. UsageError for an
    unknown one.
    """
    if not requested:
        return only_method(run, board)
    if requested not in METHODS:
        names = METHODS.names()
        hint = suggest_name(requested, names) or f"one of {', '.join(names)}"
        raise UsageError(f"unknown method {requested!r}", location="--method", hint=hint)
    return requested


def only_method(run: Run, board: leaderboard.LeaderboardSpec) -> str:
    """The zero-shot method of a run; UsageError where there are several, or none."""
    methods = sorted({cell.method for cell in run if cell.seed is None})
    if len(methods) != 1:
        said = f"was scored by {', '.join(methods)}" if methods else "holds no scored suite"
        hint = (
            f"--method {methods[0]}: a file holds one; hybrids are submitted once per method"
            if methods
            else ""
        )
        if not methods and any(cell.seed is not None for cell in run):
            causal = any(cell.method == finetune_method("causal") for cell in run)
            attention = "causal" if causal else "full"
            fitting = [m for m in board.methods if METHODS[m].main_attention == attention]
            name = fitting[0]
            hint = f"score the suites, or write the labels of the finetuned tasks alone: --method {name} --allow-partial"
        raise UsageError(f"{run.path} {said}", location="--method", hint=hint)
    return methods[0]


def read_json(path: Path, location: str) -> Any:
    """A JSON file; NaN is read, since the official pipeline writes it. DataError names the file."""
    try:
        return json.loads(decode_utf8(path.read_bytes(), str(path), DataError))
    except OSError as error:
        raise DataError(
            f"cannot be read: {error.strerror or error}", location=f"{location} {path}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"no JSON: {error}", location=f"{location} {path}") from None


def output_path(out: Path, official_name: str) -> Path:
    """The file to write: `out`, or the official name in it where it is a folder."""
    path = out / official_name if out.is_dir() else out
    runs.make_folder(path.parent)
    return path
