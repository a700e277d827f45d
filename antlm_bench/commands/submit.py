"""`submit`: write the file of a leaderboard from run folders, as the official collator does."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
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
from antlm_bench.safe_files import read_regular_file
from antlm_bench.safe_json import parse_json
from antlm_bench.scoring.methods import METHODS
from antlm_bench.suites import loader
from antlm_bench.types import Run, finetune_method

OFFICIAL_MILESTONE_PATTERN = re.compile(r"chck_(\d+)M")
"""Official names of milestones: chck_<millions of words seen>M."""
RESCORE_HINT = "run these commands (with the path of a checkpoint where they have only its name)"


@dataclass(frozen=True, slots=True)
class Submission:
    """A leaderboard file that was written."""

    path: Path
    digest: str
    """SHA-256 of the file."""
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
    file, or a folder, in which the file gets the official name. method: scoring method of the
    zero-shot parts; "" = the only one of the run. seed: finetuning seed of the GLUE predictions.
    parts: (dotted) key -> JSON file of another tool. allow_partial: write a file with missing
    parts. allow_conventions: accept cells that were scored by other conventions than the year's.
    ties: which of several best options is the answer; None = as the year's official code.

    Raises IncompleteError for missing parts (nothing is written), NotComparable for other
    conventions than the year's, UsageError if method, seed or model are ambiguous, RunError and
    DataError for unreadable files.
    """
    board = leaderboard.load_leaderboard(year)
    milestones = board.milestones_of_track(track)
    opened_runs = list(map(runs.open_run, expand_run_dirs(folders)))
    final, checkpoints = split_final_and_milestones(opened_runs)
    method = choose_method(method, final, board)
    check_same_model(final, [checkpoints[number] for number in milestones if number in checkpoints])
    external_parts = {k: read_json(Path(v), f"--part {k}") for k, v in (parts or {}).items()}
    # All milestones need the same suite, one after another: keep the last one.
    load_suite = lru_cache(1)(partial(loader.load_suite, allow_incomplete=True))
    leaderboard_file = LeaderboardFileBuilder(
        board, track, final, checkpoints, load_suite, method, seed, ties
    ).build(external_parts)
    deviations = find_deviations(board, leaderboard_file.written_sources, final)
    user_file_notes = describe_user_files(board, [final, *checkpoints.values()])
    is_empty = not any(map(has_content, leaderboard_file.document.values()))
    if leaderboard_file.missing_parts and (is_empty or not allow_partial):
        shown_deviations = [] if allow_conventions else deviations
        raise _missing_parts_error(board, leaderboard_file, user_file_notes, shown_deviations)
    if deviations and not allow_conventions:
        raise build_deviation_error(board, deviations, method)
    leaderboard.validate_document(
        leaderboard_file.document,
        board.name,
        missing_keys=[part.key for part in leaderboard_file.missing_parts],
    )
    notes = [f"in the format of {board.source}", *leaderboard_file.notes, *user_file_notes]
    notes += _describe_departures(board, track, deviations, checkpoints)
    official_name = board.file_name.format(
        method=method, name=Path(get_model_name(final)).name or "model"
    )
    path = output_path(Path(out), official_name)
    notes += _write_document(path, leaderboard_file.document, board)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Submission(path, digest, leaderboard_file.missing_parts, tuple(notes))


def _describe_departures(
    board: LeaderboardSpec,
    track: str,
    deviations: Sequence[Deviation],
    checkpoints: Mapping[int, Run],
) -> Iterator[str]:
    """Yield notes on other conventions than the year's, and on milestones that the track lacks."""
    for line in describe_deviations(deviations):
        yield f"NOT by the conventions of {board.name}: {line}"
    milestones = board.milestones_of_track(track)
    unused = sorted(checkpoints.keys() - set(milestones))
    if milestones and unused:
        names = ", ".join(f"chck_{number}M" for number in unused)
        yield f"left out, because {track} does not have these milestones: {names}"


def _missing_parts_error(
    board: LeaderboardSpec,
    leaderboard_file: LeaderboardFile,
    user_file_notes: Sequence[str],
    deviations: Sequence[Deviation],
) -> IncompleteError:
    """Return the error that lists the missing parts, with the commands that compute them."""
    listed = "\n".join(f"    {part}" for part in leaderboard_file.missing_parts)
    listed += "".join(f"\n  {sentence}" for sentence in user_file_notes)
    if not any(map(has_content, leaderboard_file.document.values())):
        message = f"all parts of the {board.year} file are missing; nothing was written:\n{listed}"
        return IncompleteError(message, hint=RESCORE_HINT)
    message = (
        f"{len(leaderboard_file.missing_parts)} parts of the {board.year} file are missing; "
        f"nothing was written:\n{listed}"
    )
    if deviations:
        lines = "\n    ".join(describe_deviations(deviations))
        message += f"\n  some parts are not by the conventions of {board.name}:\n    {lines}"
    hint = (
        f"{RESCORE_HINT}, or write the other parts with --allow-partial;"
        " the leaderboard counts missing parts as 0"
    )
    return IncompleteError(message, hint=hint)


def _write_document(path: Path, document: Mapping[str, Any], board: LeaderboardSpec) -> list[str]:
    """Write the file, compressed in years whose official file is. Return notes for the user."""
    data = json.dumps(document).encode()
    is_gzip = ".gz" in (path.suffix, Path(board.file_name).suffix)
    runs.write_atomically(path, gzip.compress(data, mtime=0) if is_gzip else data)
    if is_gzip and path.suffix != ".gz":
        return ["the file is compressed with gzip, because the official scorer expects it"]
    return []


def split_final_and_milestones(opened_runs: Sequence[Run]) -> tuple[Run, dict[int, Run]]:
    """Return the final model's run, and milestone (millions of words) -> its run.

    A run belongs to a milestone if its checkpoint is called chck_<n>M. Without another run, the
    last milestone is the final model, too. Raises UsageError without runs, for several final
    models, and for two milestones with equal weights (as after a download that ignored the
    revision).
    """
    milestones: dict[int, Run] = {}
    run_by_weights: dict[str, Run] = {}
    final_runs: list[Run] = []
    for run in opened_runs:
        number = parse_official_milestone(run)
        if number is None:
            final_runs.append(run)
            continue
        if number in milestones:
            raise UsageError(
                f"two runs of chck_{number}M: {milestones[number].path} and {run.path}",
                location="RUN",
                hint="give only one of them",
            )
        first = run_by_weights.setdefault(str(run.manifest.model.get("weights")), run)
        if first is not run:
            raise UsageError(
                f"{get_model_name(first)} and {get_model_name(run)} have the same weights",
                location=run.path,
                hint="check the checkpoints with antlm-bench preflight, and score them again",
            )
        milestones[number] = run
    if len(final_runs) > 1:
        paths = ", ".join(run.path for run in final_runs)
        raise UsageError(
            f"{len(final_runs)} runs of final models: {paths}",
            location="RUN",
            hint="give the runs of one model",
        )
    if not final_runs and not milestones:
        raise UsageError(
            "no run given", location="RUN", hint="antlm-bench score writes run folders"
        )
    return (final_runs[0] if final_runs else milestones[max(milestones)]), milestones


def check_same_model(final_run: Run, milestone_runs: Sequence[Run]) -> None:
    """Raise UsageError if a milestone belongs to another model than the final one."""
    nouns = {"architecture": "architecture", "vocabulary": "vocabulary", "parameters": "size"}
    for run in milestone_runs:
        for key, noun in nouns.items():
            expected, actual = final_run.manifest.model.get(key), run.manifest.model.get(key)
            if expected != actual:
                raise UsageError(
                    f"{get_model_name(run)} has another {noun} ({actual}) than the final model "
                    f"{get_model_name(final_run)} ({expected})",
                    location=run.path,
                    hint="give the milestones of the final model",
                )


def parse_official_milestone(run: Run) -> int | None:
    """Return the millions of words in a milestone's name, or None for another name."""
    match = OFFICIAL_MILESTONE_PATTERN.fullmatch(
        re.split(r"[/@]", get_model_name(run).rstrip("/"))[-1]
    )
    return int(match[1]) if match else None


def describe_user_files(board: LeaderboardSpec, opened_runs: Sequence[Run]) -> list[str]:
    """Return a sentence for each file of the user with the name of a suite of the leaderboard."""
    official_suites = {part.suite for part in (*board.parts, *board.milestone_parts)}
    sentences = []
    for cell in (cell for run in opened_runs for cell in run):
        name = runs.base_suite_name(cell).partition(".")[0]
        if runs.is_user_suite(cell) and name in official_suites:
            file = make_printable(cell.suite)
            sentences.append(f"{file} is a file of the user and not the suite {name}: not counted")
    return list(dict.fromkeys(sentences))


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
    """Return the zero-shot method of a run. Raises UsageError if it has several, or none.

    Results of other tools (`import`) do not count: their method is none of ours.
    """
    zero_shot_methods = {cell.method for cell in run if cell.seed is None and not cell.is_frozen}
    methods = sorted(zero_shot_methods & set(METHODS.names()))
    if len(methods) == 1:
        return methods[0]
    if methods:
        raise UsageError(
            f"{run.path} was scored by {', '.join(methods)}",
            location="--method",
            hint=f"select one, e.g. --method {methods[0]}; submit each method on its own",
        )
    hint = "score the suites with antlm-bench score"
    finetuned = [cell for cell in run if cell.seed is not None and not cell.is_frozen]
    if finetuned:
        is_causal = any(cell.method == finetune_method("causal") for cell in finetuned)
        attention = "causal" if is_causal else "full"
        fitting = [name for name in board.methods if METHODS[name].main_attention == attention]
        hint += f", or write only the finetuned tasks: --method {fitting[0]} --allow-partial"
    if zero_shot_methods:
        tools = ", ".join(sorted(zero_shot_methods))
        raise UsageError(
            f"its results are by {tools}, which is no scoring method of antlm-bench: an imported "
            "run cannot be submitted",
            location=run.path,
            hint="score its suites with antlm-bench score; predictions of another tool: --part",
        )
    raise UsageError(f"no suite was scored in {run.path}", location="--method", hint=hint)


def read_json(path: Path, location: str) -> Any:
    """Read a JSON file. NaN is allowed: the official pipeline writes it. Raises DataError."""
    try:
        return parse_json(
            decode_utf8(read_regular_file(path), str(path), DataError), allow_nan=True
        )
    except OSError as error:
        raise DataError(
            f"cannot be read: {error.strerror or error}", location=f"{location} {path}"
        ) from None
    except ValueError as error:
        raise DataError(f"not JSON: {error}", location=f"{location} {path}") from None


def output_path(out: Path, official_name: str) -> Path:
    """Return the file to write: `out`, or the official name in `out` if that is a folder."""
    path = out / official_name if out.is_dir() else out
    runs.make_folder(path.parent)
    return path
