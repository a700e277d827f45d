"""`preflight`: check a model's checkpoints against the rules of a track. No weight is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antlm_bench.commands.portability import find_portability_problems, read_json_object
from antlm_bench.commands.submit import OFFICIAL_MILESTONE_PATTERN
from antlm_bench.declarations import suggest_name
from antlm_bench.errors import CheckpointError, IncompleteError
from antlm_bench.exports.leaderboard import load_leaderboard
from antlm_bench.weight_files import hash_files, list_weight_sets, select_weights

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
PICKLED_PATTERNS = ("pytorch_model*.bin", "*.pt", "*.pth")
FINAL_MODEL_DIRS = ("main", "final", "")
"""Subfolders in which the final model may be; "" = the folder itself."""
THOUSANDS_PATTERN = re.compile(r"chck_\d+k")
"""Names that `train` gives to milestones of short runs: chck_<thousands of words seen>k."""
WORDS_TOLERANCE = 0.1
"""Tolerated relative difference between the words seen and the words in a milestone's name."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem of one checkpoint, and its fix."""

    checkpoint_name: str
    """Name of the checkpoint's folder."""
    message: str
    fix: str


def _describe_problems(problems: Sequence[Problem]) -> Iterator[str]:
    """Yield two lines per problem, with all checkpoints that have it."""
    names_by_problem: dict[tuple[str, str], list[str]] = {}
    for problem in problems:
        names_by_problem.setdefault((problem.message, problem.fix), []).append(
            problem.checkpoint_name
        )
    for (message, fix), names in names_by_problem.items():
        yield f"    {', '.join(names)}: {message}\n      {fix}"


def preflight(folder: str | Path, *, track: str, year: str) -> dict[str, Any]:
    """Check a folder of checkpoints. Return facts about it: name -> value.

    It checks the names and number of the milestones; that weights are complete safetensors and
    differ between checkpoints; that configuration and tokenizer are those of the final model; the
    words seen, if a checkpoint records them; and whether the official pipelines' version of
    transformers can open it.

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
    for name, path in folders.items():
        if not path.is_dir():
            fix = "train again and save it during training, as `antlm-bench train` does"
            problems.append(Problem(name, "missing", fix))
            continue
        problems += find_file_problems(name, path)
        if final:
            problems += find_model_mismatches(name, path, final)
    digests = {name: weights_digest(path) for name, path in folders.items() if path.is_dir()}
    problems += find_equal_weights(digests, names)
    if problems:
        lines = "\n".join(_describe_problems(problems))
        hint = f"{track} of {year} requires {len(milestones)} milestones"
        if milestones:
            hint += f" and {FINAL_MODEL_DIRS[0]}"
        raise IncompleteError(
            f"{len(problems)} problems:\n{lines}", location=str(folder), hint=hint
        )
    return {
        "track": f"{track}, {year}",
        "milestones": len(milestones),
        "final model": str(final),
        "weights": len({digest for digest in digests.values() if digest}),
    }


def find_equal_weights(digests: Mapping[str, str], milestones: Sequence[str]) -> Iterator[Problem]:
    """Yield a problem for each checkpoint with the weights of an earlier one.

    digests: name of a checkpoint -> hash of its weights, "" if they cannot be read. The final model
    may have the weights of the last milestone.
    """
    name_by_digest: dict[str, str] = {}
    for name, digest in digests.items():
        first_name = name_by_digest.setdefault(digest, name) if digest else name
        is_last_milestone = name == "final" and first_name in milestones[-1:]
        if first_name != name and not is_last_milestone:
            fix = "one of the two was saved under a wrong name, or a download ignored its revision"
            yield Problem(name, f"the same weights as {first_name}", fix)


def find_misnamed_folders(root: Path, required_names: Sequence[str]) -> Iterator[Problem]:
    """Yield a problem for each folder that looks like a milestone but is not one of the track."""
    for path in sorted(root.iterdir(), key=lambda path: (len(path.name), path.name)):
        name = path.name
        looks_like_milestone = re.match(r"ch[a-z]*k|ckpt|step", name, re.IGNORECASE)
        if not path.is_dir() or name in required_names or not looks_like_milestone:
            continue
        match = OFFICIAL_MILESTONE_PATTERN.fullmatch(name)
        if match and match[1] == str(int(match[1])):
            if required_names:
                yield Problem(name, "not a milestone of this track", "do not upload it")
        elif THOUSANDS_PATTERN.fullmatch(name):
            message = "a milestone in thousands of words; the rules count millions"
            yield Problem(name, message, "train on as many words as the track allows")
        else:
            close_name = suggest_name(name, required_names)
            close_name = close_name.removeprefix("did you mean ").strip("?'")
            fix = f"rename it to {close_name or 'chck_<millions of words seen>M'}"
            yield Problem(name, "not the name of a milestone", fix)


def find_file_problems(name: str, path: Path) -> Iterator[Problem]:
    """Yield the problems of one checkpoint's files."""
    try:
        json.loads((path / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        yield Problem(name, "no config.json", "save the model with save_pretrained")
    except (OSError, ValueError, RecursionError) as error:
        yield Problem(name, f"config.json cannot be read ({error})", "save the checkpoint again")
    if not any((path / file).is_file() for file in TOKENIZER_FILES):
        yield Problem(name, "no tokenizer", f"save it: tokenizer.save_pretrained({str(path)!r})")
    yield from _find_weight_problems(name, path)
    yield from (Problem(name, message, fix) for message, fix in find_portability_problems(path))
    training = read_json_object(path / "config.json").get("antlm_bench")
    words_seen = training.get("words_seen") if isinstance(training, dict) else None
    match = OFFICIAL_MILESTONE_PATTERN.fullmatch(name)
    if match and isinstance(words_seen, int):
        words_in_name = int(match[1]) * 1_000_000
        if abs(words_seen - words_in_name) > WORDS_TOLERANCE * words_in_name:
            message = f"its config.json records {words_seen:,} words seen"
            yield Problem(name, message, "name a milestone for its words, not for its steps")


def find_model_mismatches(name: str, path: Path, final: Path) -> Iterator[Problem]:
    """Yield a problem for each sign that a milestone does not belong to the final model."""
    fix = "save the milestones while the final model is trained"
    expected = read_json_object(final / "config.json")
    actual = read_json_object(path / "config.json")
    nouns = {
        "model_type": "model type",
        "architectures": "architecture",
        "vocab_size": "vocabulary",
    }
    for key, noun in nouns.items():
        if expected and actual and expected.get(key) != actual.get(key):
            message = f"another {noun} ({actual.get(key)}) than the final model"
            yield Problem(name, f"{message} ({expected.get(key)})", fix)
    for file_name in TOKENIZER_FILES:
        file, final_file = path / file_name, final / file_name
        if file.is_file() and final_file.is_file() and file.read_bytes() != final_file.read_bytes():
            yield Problem(name, f"another tokenizer than the final model's ({file_name})", fix)


def _find_weight_problems(name: str, path: Path) -> Iterator[Problem]:
    """Yield the problems of all sets of weight files, not only of the one that would be loaded."""
    try:
        sets = [weights for weights in list_weight_sets(path) if not weights.is_pickle]
        files = [file for weights in sets for file in weights.files]
    except CheckpointError as error:
        yield Problem(name, error.message, error.hint)
        return
    if not files:
        pickled = any(any(path.glob(pattern)) for pattern in PICKLED_PATTERNS)
        message = "pickled weights, not safetensors" if pickled else "no weights (*.safetensors)"
        yield Problem(name, message, "save the model with model.save_pretrained(folder)")
        return
    for file in dict.fromkeys(files):
        shown, fix = file.relative_to(path), "save or download it again"
        if not (file.is_file() or file.is_symlink()):
            yield Problem(name, f"a file of the weights is missing: {shown}", fix)
        elif not is_complete_safetensors(file):
            yield Problem(name, f"{shown} is truncated or not a safetensors file", fix)


def is_complete_safetensors(file: Path) -> bool:
    """Return whether a safetensors file has the length that its header implies.

    The file consists of 8 bytes (the header's length), the header (JSON), and the tensors.
    """
    try:
        with file.open("rb") as handle:
            header_length = int.from_bytes(handle.read(8), "little")
            if header_length > min(file.stat().st_size, 100_000_000):
                return False
            header = json.loads(handle.read(header_length))
            tensors = [entry for key, entry in header.items() if key != "__metadata__"]
            ends = [tensor["data_offsets"][1] for tensor in tensors]
            return bool(ends) and file.stat().st_size == 8 + header_length + max(ends)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return False


def weights_digest(path: Path) -> str:
    """Return the hash of the weights that would be loaded, or "" if not all can be read."""
    try:
        weights = select_weights(path)
    except CheckpointError:
        return ""
    if weights is None or not all(map(is_complete_safetensors, weights.files)):
        return ""
    return hash_files(weights.files)
