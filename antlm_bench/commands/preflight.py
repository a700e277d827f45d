"""preflight: does a model folder hold what a track wants of its checkpoints? Read from files; no
weight is loaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antlm_bench.commands.portability import find_portability_problems
from antlm_bench.commands.submit import MILESTONE_PATTERN
from antlm_bench.declarations import suggest_name
from antlm_bench.errors import CheckpointError, IncompleteError
from antlm_bench.exports.leaderboard import load_leaderboard
from antlm_bench.weight_files import hash_files, list_weight_sets, select_weights

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
PICKLED_PATTERNS = ("pytorch_model*.bin", "*.pt", "*.pth")
FINAL_MODEL_DIRS = (
    "main",
    "final",
    "",
)  # where the final model lies in the folder; "" = in the folder itself
# words seen may miss a milestone by a step's worth; more than a tenth is another milestone's
# checkpoint
WORDS_TOLERANCE = 0.1


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one checkpoint (by its folder's name), and what mends it."""

    checkpoint_name: str
    message: str
    fix: str

    def __str__(self) -> str:
        return f"{self.checkpoint_name}: {self.message}\n      {self.fix}"


def preflight(folder: str | Path, *, track: str, year: str) -> dict[str, Any]:
    """What was found in a folder of checkpoints that a track accepts, as names and values.

    Looks at names and number of milestones, weights (safetensors, whole, no two alike),
    configuration and tokenizer (those of the final model in all), (for checkpoints that say so) the
    words seen, and whether the official pipelines' environment can open it. Raises IncompleteError
    with every problem and its fix, CheckpointError where there is no folder, UsageError for an
    unknown year or track.
    """
    root = Path(folder)
    milestones = load_leaderboard(year).milestones(track)
    if not root.is_dir():
        raise CheckpointError(
            "no such folder",
            location=str(folder),
            hint="give the folder that holds chck_1M, chck_2M, ...",
        )
    problems: list[Problem] = []
    final = next(
        (root / name for name in FINAL_MODEL_DIRS if (root / name / "config.json").is_file()), None
    )
    if final is None:
        fix = f"save the final model as {root / FINAL_MODEL_DIRS[0]}; on the hub it is the branch main"
        problems.append(Problem(FINAL_MODEL_DIRS[0], "no final model (no config.json)", fix))
    found = {f"chck_{number}M": root / f"chck_{number}M" for number in milestones}
    problems += find_misnamed_folders(root, list(found))
    hashes: dict[str, str] = {}
    for name, path in [*found.items(), *([("final", final)] if final else [])]:
        if not path.is_dir():
            fix = "save it while training: our trainer does; it cannot be made afterwards without training again"
            problems.append(Problem(name, "missing", fix))
            continue
        problems += find_file_problems(name, path)
        if final:
            problems += find_model_mismatches(name, path, final)
        digest = weights_digest(path)
        if digest in hashes and (name != "final" or hashes[digest] != list(found)[-1]):
            fix = "one of the two was saved under a wrong name, or a download ignored its revision"
            problems.append(Problem(name, f"the same weights as {hashes[digest]}", fix))
        if digest:
            hashes.setdefault(digest, name)
    if problems:
        listed = "\n".join(f"    {problem}" for problem in problems)
        hint = f"{track} of {year} wants {len(milestones)} milestones" + (
            f" and {FINAL_MODEL_DIRS[0]}" if milestones else ""
        )
        raise IncompleteError(
            f"{len(problems)} problems:\n{listed}", location=str(folder), hint=hint
        )
    return {
        "track": f"{track}, {year}",
        "milestones": len(milestones),
        "final model": str(final),
        "weights": len(hashes),
    }


def find_misnamed_folders(root: Path, wanted: Sequence[str]) -> Iterator[Problem]:
    """Folders that look like milestones and are none of the track's."""
    for path in sorted(root.iterdir()):
        if (
            path.is_dir()
            and path.name not in wanted
            and re.match(r"ch[a-z]*k|ckpt|step", path.name, re.IGNORECASE)
        ):
            if (
                MILESTONE_PATTERN.fullmatch(path.name)
                and str(int(path.name[5:-1])) == path.name[5:-1]
            ):
                if wanted:
                    yield Problem(
                        path.name,
                        "a milestone that the track does not have",
                        "leave it out of what you upload",
                    )
            else:
                close = suggest_name(path.name, wanted).removeprefix("did you mean ").strip("?'")
                fix = (
                    f"rename it to {close}"
                    if close
                    else "a milestone is called chck_<millions of words seen>M"
                )
                yield Problem(path.name, "not the name of a milestone", fix)


def find_file_problems(name: str, path: Path) -> Iterator[Problem]:
    """What is wrong with one checkpoint's files."""
    config: Any = None
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        yield Problem(name, "no config.json", "save the model with save_pretrained")
    except (OSError, ValueError, RecursionError) as error:
        yield Problem(name, f"config.json cannot be read ({error})", "save the checkpoint again")
    if not any((path / file).is_file() for file in TOKENIZER_FILES):
        yield Problem(
            name, "no tokenizer", f"save it too: tokenizer.save_pretrained({str(path)!r})"
        )
    yield from _find_weight_problems(name, path)
    yield from (Problem(name, message, fix) for message, fix in find_portability_problems(path))
    card = config.get("antlm_bench") if isinstance(config, dict) else None
    seen = card.get("words_seen") if isinstance(card, dict) else None
    if (match := MILESTONE_PATTERN.fullmatch(name)) and isinstance(seen, int):
        wanted = int(match[1]) * 1_000_000
        if abs(seen - wanted) > WORDS_TOLERANCE * wanted:
            yield Problem(
                name,
                f"its card says {seen:,} words seen",
                "a milestone is named for words, not for steps",
            )


def find_model_mismatches(name: str, path: Path, final: Path) -> Iterator[Problem]:
    """Yield where a milestone is not of the final model: architecture, vocabulary, tokenizer."""
    fix = "a submission is of one model: save the milestones of its own training"
    ours, theirs = (read_config(folder) for folder in (final, path))
    for key, what in (
        ("model_type", "model type"),
        ("architectures", "architecture"),
        ("vocab_size", "vocabulary"),
    ):
        if ours and theirs and ours.get(key) != theirs.get(key):
            yield Problem(
                name,
                f"another {what} ({theirs.get(key)}) than the final model ({ours.get(key)})",
                fix,
            )
    for file in TOKENIZER_FILES:
        pair = [folder / file for folder in (final, path)]
        if all(one.is_file() for one in pair) and pair[0].read_bytes() != pair[1].read_bytes():
            yield Problem(name, f"another tokenizer than the final model's ({file})", fix)


def read_config(path: Path) -> dict[str, Any]:
    """The table in config.json; {} where there is none to be read."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _find_weight_problems(name: str, path: Path) -> Iterator[Problem]:
    """What is wrong with the files of weights, whichever set of them would be loaded."""
    try:
        files = [
            file for found in list_weight_sets(path) if not found.is_pickle for file in found.files
        ]
    except CheckpointError as error:
        yield Problem(name, error.message, error.hint)
        return
    if not files:
        pickled = any(any(path.glob(pattern)) for pattern in PICKLED_PATTERNS)
        message = (
            "weights are pickled, not safetensors" if pickled else "no weights (*.safetensors)"
        )
        yield Problem(name, message, "model.save_pretrained(folder) writes safetensors")
        return
    for file in dict.fromkeys(files):
        named = file.relative_to(path)
        if not (file.is_file() or file.is_symlink()):
            yield Problem(
                name, f"a part of the weights is missing: {named}", "save or download it again"
            )
        elif not is_complete_safetensors(file):
            yield Problem(
                name, f"{named} is cut short or no safetensors file", "save or download it again"
            )


def is_complete_safetensors(file: Path) -> bool:
    """Whether a safetensors file is as long as its header says (8 bytes of length, a JSON table,
    the tensors).
    """
    try:
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if length > min(file.stat().st_size, 100_000_000):
                return False
            table = json.loads(handle.read(length))
            ends = [
                entry["data_offsets"][1] for key, entry in table.items() if key != "__metadata__"
            ]
            return bool(ends) and file.stat().st_size == 8 + length + max(ends)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return False


def weights_digest(path: Path) -> str:
    """sha256 of the weights that would be loaded (weight_files.weight_hash), or "" if not all of
    them can be read.
    """
    try:
        chosen = select_weights(path)
    except CheckpointError:
        return ""
    return (
        hash_files(chosen.files)
        if chosen and all(map(is_complete_safetensors, chosen.files))
        else ""
    )
