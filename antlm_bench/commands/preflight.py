"""`preflight`: check the files of a model's checkpoints against a track. No weight is loaded."""

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
FINAL_MODEL_DIRS = ("main", "final", "")
"""Where the final model may lie in the folder; "" = in the folder itself."""
WORDS_TOLERANCE = 0.1
"""Share of a milestone by which the words seen may miss it. They miss it by less than a step."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem of one checkpoint, and its fix."""

    checkpoint_name: str
    """Name of the checkpoint's folder."""
    message: str
    fix: str

    def __str__(self) -> str:
        return f"{self.checkpoint_name}: {self.message}\n      {self.fix}"


def preflight(folder: str | Path, *, track: str, year: str) -> dict[str, Any]:
    """Check a folder of checkpoints, and return facts about it as names and values.

    Checked are names and number of milestones, weights (safetensors, whole, no two equal),
    configuration and tokenizer (those of the final model in all), the words seen (where a
    checkpoint records them), and whether the official pipelines' environment can open it.

    Raises IncompleteError with every problem and its fix, CheckpointError if there is no folder,
    UsageError for an unknown year or track.
    """
    root = Path(folder)
    milestones = load_leaderboard(year).milestones_of_track(track)
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
        folder_name = root / FINAL_MODEL_DIRS[0]
        fix = f"save the final model as {folder_name}; on the hub it is the branch main"
        problems.append(Problem(FINAL_MODEL_DIRS[0], "no final model (no config.json)", fix))
    names = [f"chck_{number}M" for number in milestones]
    folders = {name: root / name for name in names} | ({"final": final} if final else {})
    problems += find_misnamed_folders(root, names)
    name_by_digest: dict[str, str] = {}
    for name, path in folders.items():
        if not path.is_dir():
            fix = (
                "save it while training: our trainer does; it cannot be made afterwards without"
                " training again"
            )
            problems.append(Problem(name, "missing", fix))
            continue
        problems += find_file_problems(name, path)
        if final:
            problems += find_model_mismatches(name, path, final)
        digest = weights_digest(path)
        first = name_by_digest.setdefault(digest, name) if digest else name
        if first != name and (name != "final" or first != names[-1]):
            fix = "one of the two was saved under a wrong name, or a download ignored its revision"
            problems.append(Problem(name, f"the same weights as {first}", fix))
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
        "weights": len(name_by_digest),
    }


def find_misnamed_folders(root: Path, wanted: Sequence[str]) -> Iterator[Problem]:
    """Yield the folders that look like milestones and are not among those of the track."""
    for path in sorted(root.iterdir()):
        name = path.name
        looks_like_milestone = re.match(r"ch[a-z]*k|ckpt|step", name, re.IGNORECASE)
        if not path.is_dir() or name in wanted or not looks_like_milestone:
            continue
        match = MILESTONE_PATTERN.fullmatch(name)
        if match and match[1] == str(int(match[1])):
            if wanted:
                message = "a milestone that the track does not have"
                yield Problem(name, message, "leave it out of what you upload")
        else:
            close = suggest_name(name, wanted).removeprefix("did you mean ").strip("?'")
            fix = "a milestone is called chck_<millions of words seen>M"
            yield Problem(
                name, "not the name of a milestone", f"rename it to {close}" if close else fix
            )


def find_file_problems(name: str, path: Path) -> Iterator[Problem]:
    """Yield the problems of one checkpoint's files."""
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
    training = config.get("antlm_bench") if isinstance(config, dict) else None
    words_seen = training.get("words_seen") if isinstance(training, dict) else None
    if (match := MILESTONE_PATTERN.fullmatch(name)) and isinstance(words_seen, int):
        wanted = int(match[1]) * 1_000_000
        if abs(words_seen - wanted) > WORDS_TOLERANCE * wanted:
            yield Problem(
                name,
                f"its config.json records {words_seen:,} words seen",
                "a milestone is named for words, not for steps",
            )


def find_model_mismatches(name: str, path: Path, final: Path) -> Iterator[Problem]:
    """Yield the differences between a milestone and the final model, which it should belong to."""
    fix = "a submission is of one model: save the milestones of its own training"
    expected, actual = read_config(final), read_config(path)
    nouns = {
        "model_type": "model type",
        "architectures": "architecture",
        "vocab_size": "vocabulary",
    }
    for key, noun in nouns.items():
        if expected and actual and expected.get(key) != actual.get(key):
            message = f"another {noun} ({actual.get(key)}) than the final model"
            yield Problem(name, f"{message} ({expected.get(key)})", fix)
    for file in TOKENIZER_FILES:
        ours, final_file = path / file, final / file
        if ours.is_file() and final_file.is_file() and ours.read_bytes() != final_file.read_bytes():
            yield Problem(name, f"another tokenizer than the final model's ({file})", fix)


def read_config(path: Path) -> dict[str, Any]:
    """Return the object in config.json, or {} if it cannot be read."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _find_weight_problems(name: str, path: Path) -> Iterator[Problem]:
    """Yield the problems of all sets of weight files, whichever would be loaded."""
    try:
        sets = [weights for weights in list_weight_sets(path) if not weights.is_pickle]
        files = [file for weights in sets for file in weights.files]
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
        shown, fix = file.relative_to(path), "save or download it again"
        if not (file.is_file() or file.is_symlink()):
            yield Problem(name, f"a part of the weights is missing: {shown}", fix)
        elif not is_complete_safetensors(file):
            yield Problem(name, f"{shown} is cut short or no safetensors file", fix)


def is_complete_safetensors(file: Path) -> bool:
    """Whether a safetensors file is as long as its header says.

    It consists of 8 bytes (the header's length), the header (JSON), and the tensors.
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
    """Return the hash of the weights that would be loaded, or "" if not all can be read."""
    try:
        chosen = select_weights(path)
    except CheckpointError:
        return ""
    return (
        hash_files(chosen.files)
        if chosen and all(map(is_complete_safetensors, chosen.files))
        else ""
    )
