"""submit: run folders in, the leaderboard's file out as the official collator writes it, or a list of holes."""

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
from antlm_bench.declarations import decode_utf8, nearest
from antlm_bench.errors import DataError, IncompleteError, UsageError
from antlm_bench.exports import conventions, leaderboard
from antlm_bench.exports.command_hints import name_of
from antlm_bench.exports.leaderboard_file import Collator, Missing, is_filled
from antlm_bench.exports.tie_rules import Rule
from antlm_bench.reporting import results_table
from antlm_bench.scoring.probes import METHODS
from antlm_bench.suites import loader
from antlm_bench.types import Run

MILESTONE = re.compile(r"chck_(\d+)M")


@dataclass(frozen=True, slots=True)
class Submission:
    """A file that was written: where, its sha256, what it leaves empty (only where allowed), what to know of it."""

    path: Path
    digest: str
    missing: tuple[Missing, ...]
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
    ties: Rule | None = None,
) -> Submission:
    """Write the file of a year and track from run folders: the final model's, and those of its milestones.

    out: the file, or a folder for one with the official name. method: of the zero-shot parts, "" = the only one there.
    seed: of the GLUE labels. parts: (dotted) key -> JSON file made elsewhere. allow_partial: holes are announced, not
    refused. allow_conventions: so are cells that are not by the year's conventions. ties: which of the best options is
    answered, None = the one that the year's official code takes.
    Raises IncompleteError (nothing is written) for holes, NotComparable for other conventions than the year's,
    UsageError for a choice that is not ours to make, RunError and DataError for what cannot be read.
    """
    board = leaderboard.leaderboard(year)
    milestones = board.milestones(track)
    final, checkpoints = sorted_runs([run for folder in folders for run in opened(folder)])
    method = chosen_method(method, final, board)
    one_model(final, [checkpoints[number] for number in milestones if number in checkpoints])
    given = {key: read_json(Path(path), f"--part {key}") for key, path in (parts or {}).items()}
    texts = lru_cache(1)(partial(loader.load, allow_incomplete=True))  # one suite is asked for at every milestone
    collation = Collator(board, track, final, checkpoints, texts, method, seed, ties).collate(given)
    deviations = conventions.deviations(board, collation.written, final)
    strangers = own_files(board, [final, *checkpoints.values()])
    empty = not any(map(is_filled, collation.document.values()))
    if collation.missing and (empty or not allow_partial):
        listed = "\n".join(f"    {missing}" for missing in collation.missing)
        listed += "".join(f"\n  {sentence}" for sentence in strangers)
        message = f"{len(collation.missing)} parts of the {board.year} file are missing; nothing was written:\n{listed}"
        if deviations and not allow_conventions:
            also = "\n    ".join(conventions.described(deviations))
            message += f"\n  what is there is not all by the conventions of {board.name}:\n    {also}"
        hint = (
            "make them (a local checkpoint goes by its folder's name here: give its path), or write what there is with "
        )
        hint += "--allow-partial; the leaderboard counts holes as 0"
        if empty:
            message = f"no part of the {board.year} file is there; nothing was written:\n{listed}"
            hint = "make them (a local checkpoint goes by its folder's name here: give its path)"
        raise IncompleteError(message, hint=hint)
    if deviations and not allow_conventions:
        raise conventions.refuse(board, deviations, method)
    leaderboard.check(collation.document, board.name, absent=[missing.key for missing in collation.missing])
    notes = [f"as {board.source} writes it", *collation.notes, *strangers]
    notes += [f"NOT by the conventions of {board.name}: {line}" for line in conventions.described(deviations)]
    if milestones and (unused := sorted(checkpoints.keys() - set(milestones))):
        notes.append(f"{track} has no milestone {', '.join(f'chck_{number}M' for number in unused)}: left out")
    path = placed(Path(out), board.file.format(method=method, name=Path(name_of(final)).name or "model"))
    data = json.dumps(collation.document).encode()
    packed = ".gz" in (path.suffix, Path(board.file).suffix)  # 2024's scorer unpacks a file of any name
    if packed and path.suffix != ".gz":
        notes.append("the file is gzip, whatever its name: the official scorer of the year unpacks it")
    runs.write_whole(path, gzip.compress(data, mtime=0) if packed else data)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Submission(path, digest, collation.missing, tuple(notes))


def opened(folder: str | Path, read: Callable[[Path], Run] = runs.read) -> list[Run]:
    """The run in a folder, or those one level down. `submit` checks the summaries that it uses, part by part; other
    callers give `read_run`."""
    path = Path(folder)
    if not (path / "run.json").exists():
        inner = sorted(found.parent for found in path.glob("*/run.json"))
        if inner:
            return [read(one) for one in inner]
    return [read(path)]


def sorted_runs(found: Sequence[Run]) -> tuple[Run, dict[int, Run]]:
    """(the final model's run, milestone in millions of words -> its run), by the checkpoints' names.

    A run whose checkpoint is called chck_<n>M is a milestone's; where all are, the last is the final model's too. Equal
    weights in two milestones are refused: a download that ignores its revision gives the same checkpoint n times.
    """
    milestones: dict[int, Run] = {}
    twins: dict[str, Run] = {}
    final: list[Run] = []
    for run in found:
        number = milestone_of(run)
        if number is None:
            final.append(run)
        elif number in milestones:
            both = f"{milestones[number].path} and {run.path}"
            raise UsageError(f"two runs of chck_{number}M: {both}", place="RUN", hint="give the one that counts")
        elif (twin := twins.setdefault(str(run.manifest.model.get("weights")), run)) is not run:
            message = f"{name_of(twin)} and {name_of(run)} have the same weights"
            raise UsageError(message, place=run.path, hint="score the checkpoints themselves: antlm-bench preflight")
        else:
            milestones[number] = run
    if len(final) > 1:
        both = ", ".join(run.path for run in final)
        raise UsageError(f"{len(final)} runs of final models: {both}", place="RUN", hint="a file holds one model")
    if not final and not milestones:
        raise UsageError("no run given", place="RUN", hint="antlm-bench score ... writes run folders")
    return (final[0] if final else milestones[max(milestones)]), milestones


def one_model(final: Run, milestones: Sequence[Run]) -> None:
    """UsageError where a milestone is of another model than the final one."""
    for run in milestones:
        for name, what in (("architecture", "architecture"), ("vocabulary", "vocabulary"), ("parameters", "size")):
            ours, theirs = (one.manifest.model.get(name) for one in (final, run))
            if ours != theirs:
                message = f"{name_of(run)} has another {what} ({theirs}) than the final model {name_of(final)} ({ours})"
                raise UsageError(
                    message, place=run.path, hint="a file holds one model: give the runs of its own milestones"
                )


def milestone_of(run: Run) -> int | None:
    """Millions of words, as a checkpoint's name tells them; None for a name that is no milestone's."""
    match = MILESTONE.fullmatch(re.split(r"[/@]", name_of(run).rstrip("/"))[-1])
    return int(match[1]) if match else None


def own_files(board: leaderboard.LeaderboardSpec, found: Sequence[Run]) -> list[str]:
    """A sentence for each of the user's own files that goes by the name of a suite of the leaderboard."""
    wanted = {part.suite for part in (*board.part, *board.fast)}
    own = [(cell.suite, runs.base_name(cell).partition(".")[0]) for run in found for cell in run if runs.is_own(cell)]
    return [
        f"{results_table.printable(shown)} is a file of the user's and not the suite {name}: not counted"
        for shown, name in dict.fromkeys(own)
        if name in wanted
    ]


def chosen_method(asked: str, run: Run, board: leaderboard.LeaderboardSpec) -> str:
    """The zero-shot method of the file: as asked, else the only one of the run. UsageError for an unknown one."""
    if not asked:
        return only_method(run, board)
    if asked not in METHODS:
        hint = nearest(asked, METHODS) or f"one of {', '.join(METHODS)}"
        raise UsageError(f"unknown method {asked!r}", place="--method", hint=hint)
    return asked


def only_method(run: Run, board: leaderboard.LeaderboardSpec) -> str:
    """The zero-shot method of a run; UsageError where there are several, or none."""
    methods = sorted({cell.method for cell in run if cell.seed is None})
    if len(methods) != 1:
        said = f"was scored by {', '.join(methods)}" if methods else "holds no scored suite"
        hint = f"--method {methods[0]}: a file holds one; hybrids are submitted once per method" if methods else ""
        if not methods and any(cell.seed is not None for cell in run):
            causal = any(cell.method == "finetune-causal" for cell in run)
            name = "causal" if causal else next(name for name in board.methods if name != "causal")
            hint = (
                f"score the suites, or write the labels of the finetuned tasks alone: --method {name} --allow-partial"
            )
        raise UsageError(f"{run.path} {said}", place="--method", hint=hint)
    return methods[0]


def read_json(path: Path, place: str) -> Any:
    """A JSON file; NaN is read, since the official pipeline writes it. DataError names the file."""
    try:
        return json.loads(decode_utf8(path.read_bytes(), str(path), DataError))
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", place=f"{place} {path}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"no JSON: {error}", place=f"{place} {path}") from None


def placed(out: Path, official: str) -> Path:
    """The file to write: `out`, or the official name in it where it is a folder."""
    path = out / official if out.is_dir() else out
    runs.make(path.parent)
    return path
