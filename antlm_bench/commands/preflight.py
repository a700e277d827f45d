"""preflight: does a model folder hold what a track wants of its checkpoints? Read from files; no weight is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antlm_bench.commands.portability import portability_problems
from antlm_bench.commands.submit import MILESTONE
from antlm_bench.declarations import nearest
from antlm_bench.errors import CheckpointError, IncompleteError
from antlm_bench.exports.leaderboard import leaderboard
from antlm_bench.weight_files import hash_of, select_weights, weight_sets

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
PICKLED = ("pytorch_model*.bin", "*.pt", "*.pth")
FINAL = ("main", "final", "")  # where the final model lies in the folder; "" = in the folder itself
SLACK = 0.1  # words seen may miss a milestone by a step's worth; more than a tenth is another milestone's checkpoint


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one checkpoint (by its folder's name), and what mends it."""

    place: str
    message: str
    fix: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}\n      {self.fix}"


def preflight(folder: str | Path, *, track: str, year: str) -> dict[str, Any]:
    """What was found in a folder of checkpoints that a track accepts, as names and values.

    Looks at names and number of milestones, weights (safetensors, whole, no two alike), configuration and tokenizer
    (those of the final model in all), (for checkpoints that say so) the words seen, and whether the official pipelines'
    environment can open it. Raises IncompleteError with every problem and its fix, CheckpointError where there is no
    folder, UsageError for an unknown year or track.
    """
    root = Path(folder)
    milestones = leaderboard(year).milestones(track)
    if not root.is_dir():
        raise CheckpointError(
            "no such folder", place=str(folder), hint="give the folder that holds chck_1M, chck_2M, ..."
        )
    problems: list[Problem] = []
    final = next((root / name for name in FINAL if (root / name / "config.json").is_file()), None)
    if final is None:
        fix = f"save the final model as {root / FINAL[0]}; on the hub it is the branch main"
        problems.append(Problem(FINAL[0], "no final model (no config.json)", fix))
    found = {f"chck_{number}M": root / f"chck_{number}M" for number in milestones}
    problems += misnamed(root, list(found))
    hashes: dict[str, str] = {}
    for name, path in [*found.items(), *([("final", final)] if final else [])]:
        if not path.is_dir():
            fix = "save it while training: our trainer does; it cannot be made afterwards without training again"
            problems.append(Problem(name, "missing", fix))
            continue
        problems += broken(name, path)
        if final:
            problems += of_another_model(name, path, final)
        digest = weights(path)
        if digest in hashes and (name != "final" or hashes[digest] != list(found)[-1]):
            fix = "one of the two was saved under a wrong name, or a download ignored its revision"
            problems.append(Problem(name, f"the same weights as {hashes[digest]}", fix))
        if digest:
            hashes.setdefault(digest, name)
    if problems:
        listed = "\n".join(f"    {problem}" for problem in problems)
        hint = f"{track} of {year} wants {len(milestones)} milestones" + (f" and {FINAL[0]}" if milestones else "")
        raise IncompleteError(f"{len(problems)} problems:\n{listed}", place=str(folder), hint=hint)
    return {
        "track": f"{track}, {year}",
        "milestones": len(milestones),
        "final model": str(final),
        "weights": len(hashes),
    }


def misnamed(root: Path, wanted: Sequence[str]) -> Iterator[Problem]:
    """Folders that look like milestones and are none of the track's."""
    for path in sorted(root.iterdir()):
        if path.is_dir() and path.name not in wanted and re.match(r"ch[a-z]*k|ckpt|step", path.name, re.IGNORECASE):
            if MILESTONE.fullmatch(path.name) and str(int(path.name[5:-1])) == path.name[5:-1]:
                if wanted:
                    yield Problem(
                        path.name, "a milestone that the track does not have", "leave it out of what you upload"
                    )
            else:
                close = nearest(path.name, wanted).removeprefix("did you mean ").strip("?'")
                fix = f"rename it to {close}" if close else "a milestone is called chck_<millions of words seen>M"
                yield Problem(path.name, "not the name of a milestone", fix)


def broken(name: str, path: Path) -> Iterator[Problem]:
    """What is wrong with one checkpoint's files."""
    config: Any = None
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        yield Problem(name, "no config.json", "save the model with save_pretrained")
    except (OSError, ValueError, RecursionError) as error:
        yield Problem(name, f"config.json cannot be read ({error})", "save the checkpoint again")
    if not any((path / file).is_file() for file in TOKENIZERS):
        yield Problem(name, "no tokenizer", f"save it too: tokenizer.save_pretrained({str(path)!r})")
    yield from _broken_weights(name, path)
    yield from (Problem(name, message, fix) for message, fix in portability_problems(path))
    card = config.get("antlm_bench") if isinstance(config, dict) else None
    seen = card.get("words_seen") if isinstance(card, dict) else None
    if (match := MILESTONE.fullmatch(name)) and isinstance(seen, int):
        wanted = int(match[1]) * 1_000_000
        if abs(seen - wanted) > SLACK * wanted:
            yield Problem(name, f"its card says {seen:,} words seen", "a milestone is named for words, not for steps")


def of_another_model(name: str, path: Path, final: Path) -> Iterator[Problem]:
    """Yield where a milestone is not of the final model: architecture, vocabulary, tokenizer."""
    fix = "a submission is of one model: save the milestones of its own training"
    ours, theirs = (configuration(folder) for folder in (final, path))
    for key, what in (("model_type", "model type"), ("architectures", "architecture"), ("vocab_size", "vocabulary")):
        if ours and theirs and ours.get(key) != theirs.get(key):
            yield Problem(name, f"another {what} ({theirs.get(key)}) than the final model ({ours.get(key)})", fix)
    for file in TOKENIZERS:
        pair = [folder / file for folder in (final, path)]
        if all(one.is_file() for one in pair) and pair[0].read_bytes() != pair[1].read_bytes():
            yield Problem(name, f"another tokenizer than the final model's ({file})", fix)


def configuration(path: Path) -> dict[str, Any]:
    """The table in config.json; {} where there is none to be read."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _broken_weights(name: str, path: Path) -> Iterator[Problem]:
    """What is wrong with the files of weights, whichever set of them would be loaded."""
    try:
        files = [file for found in weight_sets(path) if not found.pickled for file in found.files]
    except CheckpointError as error:
        yield Problem(name, error.message, error.hint)
        return
    if not files:
        pickled = any(any(path.glob(pattern)) for pattern in PICKLED)
        message = "weights are pickled, not safetensors" if pickled else "no weights (*.safetensors)"
        yield Problem(name, message, "model.save_pretrained(folder) writes safetensors")
        return
    for file in dict.fromkeys(files):
        named = file.relative_to(path)
        if not (file.is_file() or file.is_symlink()):
            yield Problem(name, f"a part of the weights is missing: {named}", "save or download it again")
        elif not whole(file):
            yield Problem(name, f"{named} is cut short or no safetensors file", "save or download it again")


def whole(file: Path) -> bool:
    """Whether a safetensors file is as long as its header says (8 bytes of length, a JSON table, the tensors)."""
    try:
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if length > min(file.stat().st_size, 100_000_000):
                return False
            table = json.loads(handle.read(length))
            ends = [entry["data_offsets"][1] for key, entry in table.items() if key != "__metadata__"]
            return bool(ends) and file.stat().st_size == 8 + length + max(ends)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return False


def weights(path: Path) -> str:
    """sha256 of the weights that would be loaded (weight_files.weight_hash), or "" if not all of them can be read."""
    try:
        chosen = select_weights(path)
    except CheckpointError:
        return ""
    return hash_of(chosen.files) if chosen and all(map(whole, chosen.files)) else ""
