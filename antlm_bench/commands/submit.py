"""`submit`: run folders -> the leaderboard's file, as the official collator writes it."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from antlm_bench import runs
from antlm_bench.declarations import decode_utf8, suggest_name
from antlm_bench.errors import DataError, IncompleteError, UsageError
from antlm_bench.exports import leaderboard
from antlm_bench.exports.deviations import (
    Deviation,
    build_deviation_error,
    describe_deviations,
    find_deviations,
)
from antlm_bench.exports.leaderboard import LeaderboardSpec, TieRule, get_model_name
from antlm_bench.exports.leaderboard_file import (
    LeaderboardFile,
    LeaderboardFileBuilder,
    MissingPart,
    has_content,
)
from antlm_bench.printable import make_printable
from antlm_bench.results.checkpoint_series import expand_run_dirs
from antlm_bench.scoring.methods import METHODS
from antlm_bench.suites import loader
from antlm_bench.types import Run, finetune_method

MILESTONE_PATTERN = re.compile(r"chck_(\d+)M")
RESCORE_HINT = "make them (a local checkpoint goes by its folder's name here: give its path)"


@dataclass(frozen=True, slots=True)
class Submission:
    """A leaderboard file that was written."""

    path: Path
    digest: str
    """sha256 of the file."""
    missing: tuple[MissingPart, ...]
    """Parts that the file lacks; only with `allow_partial`."""
    notes: tuple[str, ...]
    """Sentences that qualify the file."""


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
    """Write the leaderboard file of a year and track.

    folders: run folders (or folders of them) of the final model and of its milestones. out: the
    file, or a folder, in which it gets the official name. method: of the zero-shot parts; "" = the
    only one of the run. seed: of the GLUE labels. parts: (dotted) key -> JSON file that was made
    elsewhere. allow_partial: write a file with missing parts. allow_conventions: accept cells that
    were not scored by the year's conventions. ties: which of the best options is answered; None =
    as the year's official code.

    Raises IncompleteError for missing parts (nothing is written), NotComparable for other
    conventions than the year's, UsageError for an ambiguous choice, RunError and DataError for
    what cannot be read.
    """
    board = leaderboard.load_leaderboard(year)
    milestones = board.milestones_of_track(track)
    final, checkpoints = split_final_and_milestones(
        [runs.open_run(run_dir) for run_dir in expand_run_dirs(folders)]
    )
    method = choose_method(method, final, board)
    check_same_model(final, [checkpoints[number] for number in milestones if number in checkpoints])
    given = {key: read_json(Path(path), f"--part {key}") for key, path in (parts or {}).items()}
    # Every milestone needs the same suite.
    load_suite = lru_cache(1)(partial(loader.load_suite, allow_incomplete=True))
    collation = LeaderboardFileBuilder(
        board, track, final, checkpoints, load_suite, method, seed, ties
    ).build(given)
    deviations = find_deviations(board, collation.written_sources, final)
    own_files = own_file_notes(board, [final, *checkpoints.values()])
    empty = not any(map(has_content, collation.document.values()))
    if collation.missing_parts and (empty or not allow_partial):
        shown_deviations = [] if allow_conventions else deviations
        raise _missing_parts_error(board, collation, own_files, shown_deviations)
    if deviations and not allow_conventions:
        raise build_deviation_error(board, deviations, method)
    leaderboard.validate_document(
        collation.document, board.name, missing_keys=[part.key for part in collation.missing_parts]
    )
    notes = [f"as {board.source} writes it", *collation.notes, *own_files]
    notes += [
        f"NOT by the conventions of {board.name}: {line}"
        for line in describe_deviations(deviations)
    ]
    if milestones and (unused := sorted(checkpoints.keys() - set(milestones))):
        names = ", ".join(f"chck_{number}M" for number in unused)
        notes.append(f"{track} has no milestone {names}: left out")
    official_name = board.file_name.format(
        method=method, name=Path(get_model_name(final)).name or "model"
    )
    path = output_path(Path(out), official_name)
    notes += _write_document(path, collation.document, board)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Submission(path, digest, collation.missing_parts, tuple(notes))


def _missing_parts_error(
    board: LeaderboardSpec,
    collation: LeaderboardFile,
    own_files: Sequence[str],
    deviations: Sequence[Deviation],
) -> IncompleteError:
    """Return the error that lists the missing parts, with the commands that make them."""
    listed = "\n".join(f"    {part}" for part in collation.missing_parts)
    listed += "".join(f"\n  {sentence}" for sentence in own_files)
    if not any(map(has_content, collation.document.values())):
        message = f"no part of the {board.year} file is there; nothing was written:\n{listed}"
        return IncompleteError(message, hint=RESCORE_HINT)
    message = (
        f"{len(collation.missing_parts)} parts of the {board.year} file are missing; "
        f"nothing was written:\n{listed}"
    )
    if deviations:
        lines = "\n    ".join(describe_deviations(deviations))
        message += f"\n  what is there is not all by the conventions of {board.name}:\n    {lines}"
    hint = (
        f"{RESCORE_HINT}, or write what there is with --allow-partial;"
        " the leaderboard counts holes as 0"
    )
    return IncompleteError(message, hint=hint)


def _write_document(path: Path, document: Mapping[str, Any], board: LeaderboardSpec) -> list[str]:
    """Write the file, as gzip in years that want it. Return notes for the user."""
    data = json.dumps(document).encode()
    packed = ".gz" in (path.suffix, Path(board.file_name).suffix)
    runs.write_atomically(path, gzip.compress(data, mtime=0) if packed else data)
    if packed and path.suffix != ".gz":
        return ["the file is gzip, whatever its name: the official scorer of the year unpacks it"]
    return []


def split_final_and_milestones(opened_runs: Sequence[Run]) -> tuple[Run, dict[int, Run]]:
    """Return the final model's run, and milestone (millions of words) -> its run.

    A run is a milestone's if its checkpoint is called chck_<n>M. Where all are, the last one is the
    final model's too. Raises UsageError for none, for several final models, and for two milestones
    with equal weights: a download that ignores its revision gives the same checkpoint every time.
    """
    milestones: dict[int, Run] = {}
    run_by_weights: dict[str, Run] = {}
    final_runs: list[Run] = []
    for run in opened_runs:
        number = parse_milestone(run)
        if number is None:
            final_runs.append(run)
            continue
        if number in milestones:
            raise UsageError(
                f"two runs of chck_{number}M: {milestones[number].path} and {run.path}",
                location="RUN",
                hint="give the one that counts",
            )
        first = run_by_weights.setdefault(str(run.manifest.model.get("weights")), run)
        if first is not run:
            raise UsageError(
                f"{get_model_name(first)} and {get_model_name(run)} have the same weights",
                location=run.path,
                hint="score the checkpoints themselves: antlm-bench preflight",
            )
        milestones[number] = run
    if len(final_runs) > 1:
        paths = ", ".join(run.path for run in final_runs)
        raise UsageError(
            f"{len(final_runs)} runs of final models: {paths}",
            location="RUN",
            hint="a file holds one model",
        )
    if not final_runs and not milestones:
        raise UsageError(
            "no run given", location="RUN", hint="antlm-bench score ... writes run folders"
        )
    return (final_runs[0] if final_runs else milestones[max(milestones)]), milestones


def check_same_model(final_run: Run, milestone_runs: Sequence[Run]) -> None:
    """Raise UsageError where a milestone is of another model than the final one."""
    nouns = {"architecture": "architecture", "vocabulary": "vocabulary", "parameters": "size"}
    for run in milestone_runs:
        for key, noun in nouns.items():
            expected, actual = final_run.manifest.model.get(key), run.manifest.model.get(key)
            if expected != actual:
                raise UsageError(
                    f"{get_model_name(run)} has another {noun} ({actual}) than the final model "
                    f"{get_model_name(final_run)} ({expected})",
                    location=run.path,
                    hint="a file holds one model: give the runs of its own milestones",
                )


def parse_milestone(run: Run) -> int | None:
    """Return the millions of words in a milestone's name, or None for another name."""
    match = MILESTONE_PATTERN.fullmatch(re.split(r"[/@]", get_model_name(run).rstrip("/"))[-1])
    return int(match[1]) if match else None


def own_file_notes(board: LeaderboardSpec, opened_runs: Sequence[Run]) -> list[str]:
    """Return a sentence for each file of the user's with the name of a suite of the leaderboard."""
    wanted = {part.suite for part in (*board.parts, *board.milestone_parts)}
    own = [
        (cell.suite, runs.base_suite_name(cell).partition(".")[0])
        for run in opened_runs
        for cell in run
        if runs.is_user_suite(cell)
    ]
    return [
        f"{make_printable(shown)} is a file of the user's and not the suite {name}: not counted"
        for shown, name in dict.fromkeys(own)
        if name in wanted
    ]


def choose_method(requested: str, run: Run, board: LeaderboardSpec) -> str:
    """Return the requested zero-shot method, or else the only one of the run.

    Raises UsageError for an unknown method.
    """
    if not requested:
        return only_method(run, board)
    if requested not in METHODS:
        names = METHODS.names()
        hint = suggest_name(requested, names) or f"one of {', '.join(names)}"
        raise UsageError(f"unknown method {requested!r}", location="--method", hint=hint)
    return requested


def only_method(run: Run, board: LeaderboardSpec) -> str:
    """Return the zero-shot method of a run. Raises UsageError for several, or none."""
    methods = sorted({cell.method for cell in run if cell.seed is None})
    if len(methods) == 1:
        return methods[0]
    if methods:
        raise UsageError(
            f"{run.path} was scored by {', '.join(methods)}",
            location="--method",
            hint=f"--method {methods[0]}: a file holds one; hybrids are submitted once per method",
        )
    hint = ""
    if any(cell.seed is not None for cell in run):
        causal = any(cell.method == finetune_method("causal") for cell in run)
        attention = "causal" if causal else "full"
        fitting = [name for name in board.methods if METHODS[name].main_attention == attention]
        hint = (
            "score the suites, or write the labels of the finetuned tasks alone: "
            f"--method {fitting[0]} --allow-partial"
        )
    raise UsageError(f"{run.path} holds no scored suite", location="--method", hint=hint)


def read_json(path: Path, location: str) -> Any:
    """Read a JSON file. NaN is allowed: the official pipeline writes it. Raises DataError."""
    try:
        return json.loads(decode_utf8(path.read_bytes(), str(path), DataError))
    except OSError as error:
        raise DataError(
            f"cannot be read: {error.strerror or error}", location=f"{location} {path}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"no JSON: {error}", location=f"{location} {path}") from None


def output_path(out: Path, official_name: str) -> Path:
    """Return the file to write: `out`, or the official name in it if it is a folder."""
    path = out / official_name if out.is_dir() else out
    runs.make_folder(path.parent)
    return path
