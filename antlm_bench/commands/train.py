"""train: a recipe and text in, checkpoints out; the same command again continues where it stopped."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from antlm_bench import __version__, runs
from antlm_bench.commands.progress_log import LOG, Watching
from antlm_bench.declarations import nearest
from antlm_bench.errors import CheckpointError, DeclarationError, RunError, UsageError
from antlm_bench.training.recipe import Recipe, read_recipe, scales_of
from antlm_bench.training.text_sources import Source, source
from antlm_bench.weight_files import weight_hash

if TYPE_CHECKING:
    from antlm_bench.training.corpus import Corpus

RECORD = "train.json"
# Entries of the record that must be the same for a run to continue, beside its teachers.
COMPARED = ("recipe", "text", "corpus_format", "precision")


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """What `train` can be told beside recipe, corpus and folder. See the command line's help.

    teachers: checkpoints for a distilled recipe, in its order; none = they are trained first. resume: there must be
    something to continue.
    """

    scale: str = ""
    changes: Sequence[str] = ()
    teachers: Sequence[str] = ()
    resume: bool = False
    device: str = "auto"
    precision: str = "float32"
    micro_tokens: int | None = None
    compiled: bool = False
    save_every: float = 10.0
    stop_after: int | None = None
    trackers: Sequence[str] = field(default_factory=tuple)


def train(recipe: str, corpus: str, out: str | Path, options: TrainOptions | None = None) -> Path | None:
    """Train a recipe on a corpus; the folder of the final checkpoint, None if stopped before by `stop_after`.

    out: receives recipe and corpus digest (train.json), the log (train.jsonl), corpus/, state/, chck_1M ... and main.
    A finished run is left alone. An unfinished one continues if recipe, text, precision and the weights of its teachers
    are the same.

    Raises DeclarationError, DataError, UsageError (another run is in `out`), TrainingError, RunError.
    """
    options = options or TrainOptions()
    resolved = read_recipe(recipe, options.scale, options.changes)
    _installed(options.trackers)
    text = source(corpus)
    folder = Path(out)
    for _, teacher in _named(resolved, options):  # before anything is written: a misfit must not cost an hour
        if teacher:
            _fits(teacher, resolved)
    return _train(resolved, text, folder, options)


def _train(recipe: Recipe, text: Source, folder: Path, options: TrainOptions) -> Path | None:
    from accelerate import PartialState

    from antlm_bench.training import corpus as corpora
    from antlm_bench.training.pretrain import Conditions, Training, pretrain

    processes = PartialState(cpu=options.device == "cpu")
    main = processes.is_main_process
    with ExitStack() as stack:
        given = _hash_teachers(options.teachers) if main else []  # before anything is written
        if main:
            runs.make(folder)
            stack.enter_context(runs.lock(folder))
            _claim(folder, _record(recipe, text, options, given), options.resume)
        if _read(folder).get("finished"):
            return folder / "main"
        trained = [_teacher(path, teacher, text, folder, options) for path, teacher in _named(recipe, options)]
        teachers = [path for path in trained if path is not None]
        if len(teachers) < len(trained):
            return None
        if main and teachers and not options.teachers:
            _claim_trained_teachers(folder, _hash_teachers(teachers))
        with processes.main_process_first():
            rows = corpora.prepare(text, recipe.corpus, recipe.tokenizer, recipe.model.positions, folder / "corpus")
        conditions = Conditions(
            device="cpu" if options.device == "cpu" else "auto",
            precision="bfloat16" if options.precision == "bfloat16" else "float32",
            micro_tokens=options.micro_tokens,
            compiled=options.compiled,
            save_every=options.save_every,
            stop_after=options.stop_after,
            trackers=tuple(options.trackers),
            tracked_in=str(folder),
        )
        training = Training(recipe, rows, conditions, [_opened(Path(path), rows) for path in teachers])
        asked = stack.enter_context(_asked_to_stop())
        watcher = stack.enter_context(Watching(folder, recipe, asked, conditions, training))
        made = pretrain(training, folder, watcher, conditions)
        if made and main:  # only now: a kill after the last step leaves its scores to the next call
            _write(folder, _read(folder) | {"finished": True})
    if made is None and asked:  # everything is saved: now the signal may do what it is for
        signal.raise_signal(asked[0])
    return made


def _installed(trackers: Sequence[str]) -> None:
    """Raises UsageError for a tracker that Accelerate does not know, or would leave out without a word."""
    if not trackers:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    for name in trackers:
        if name not in LOGGER_TYPE_TO_CLASS:
            hint = nearest(name, LOGGER_TYPE_TO_CLASS) or f"one of {', '.join(LOGGER_TYPE_TO_CLASS)}"
            raise UsageError(f"unknown tracker {name!r}", place="--track", hint=hint)
        if name not in map(str, get_available_trackers()):
            raise UsageError(f"{name!r} is not installed", place="--track", hint=f"pip install {name}")


def _record(recipe: Recipe, text: Source, options: TrainOptions, given: list[str]) -> dict[str, Any]:
    """Describe a run by everything that changes its weights by more than rounding.

    given: hashes of the weights of the teachers that --teacher names. Teachers that are trained first
    have no hash yet: `_claim_trained_teachers` adds it. A run without teachers has no such entry.
    """
    from antlm_bench.training.corpus import FORMAT

    record: dict[str, Any] = {"recipe": recipe.model_dump(mode="json"), "corpus": text.name, "text": text.digest}
    record |= {"corpus_format": FORMAT, "precision": options.precision, "version": __version__}
    if recipe.distil:
        record["teachers"] = {"given": bool(given), "weights": given}
    return record


def _claim(folder: Path, record: dict[str, Any], resume: bool) -> None:
    """Write the record of a new run, or check that the folder's run is the same one.

    A record of another run is replaced if that run ended before its first step. Entries that older
    versions did not write are not compared. Raises UsageError, RunError.
    """
    existing = _read(folder)
    if existing:
        compared = {key: record[key] for key in COMPARED if key in existing or key == "recipe"}
        difference = _difference(existing, compared) or _teacher_difference(existing, record)
        if not difference:
            return
        if resume or _has_steps(folder, existing):
            hint = "choose another --out, or give the same options to continue"
            raise UsageError(f"another run is here: {difference}", place=str(folder), hint=hint)
    elif resume:
        raise UsageError("there is nothing to resume", place=str(folder), hint="leave --resume out to begin")
    elif any(not file.name.startswith(".") for file in folder.iterdir()):
        raise UsageError("this folder holds something else", place=str(folder), hint="choose another --out")
    _write(folder, record)


def _has_steps(folder: Path, record: dict[str, Any]) -> bool:
    """Tell whether a run has made a step: it is finished, or has a state or a line in its log."""
    log = folder / LOG
    return bool(record.get("finished")) or (folder / "state").exists() or (log.exists() and log.stat().st_size > 0)


def _teacher_difference(existing: dict[str, Any], record: dict[str, Any]) -> str:
    """Describe how the teachers of two records differ; "" if they agree or one does not say.

    Their order is not compared: it changes the mean of their logits by rounding only.
    """
    there, here = existing.get("teachers"), record.get("teachers")
    if there is None or here is None or sorted(there["weights"]) == sorted(here["weights"]):
        return ""
    if not here["given"]:
        return "" if not there["given"] else "its teachers were given with --teacher, and here none are"
    if not there["weights"]:
        return "its teachers are trained first, and here they are given with --teacher"
    return f"the weights of its teachers are {_short(there['weights'])} there and {_short(here['weights'])} here"


def _short(hashes: list[str]) -> str:
    return ", ".join(digest[:12] for digest in hashes)


def _claim_trained_teachers(folder: Path, hashes: list[str]) -> None:
    """Record the teachers that were trained first, or check that they are the recorded ones.

    Raises UsageError for other weights than those that the run's first steps learned from.
    """
    record = _read(folder)
    if "teachers" not in record:  # written by an older version
        return
    weights = {"given": False, "weights": hashes}
    if record["teachers"]["weights"] and _has_steps(folder, record):
        if sorted(record["teachers"]["weights"]) != sorted(hashes):
            recorded = _short(record["teachers"]["weights"])
            raise UsageError(
                f"the teachers have changed: their weights were {recorded} and are {_short(hashes)}",
                place=str(folder / "teachers"),
                hint="choose another --out",
            )
        return
    _write(folder, record | {"teachers": weights})


def _read(folder: Path) -> dict[str, Any]:
    """What the folder says of its run; nothing where there is none. Raises RunError."""
    path = folder / RECORD
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"cannot be read: {error}", place=str(path), hint="choose another --out") from error


def _write(folder: Path, record: dict[str, Any]) -> None:
    runs.write_whole(folder / RECORD, json.dumps(record, indent=1).encode())


def _difference(there: Any, here: Any, place: str = "") -> str:
    """The first key by which two records differ, with both values; "" where they agree."""
    if isinstance(there, dict) and isinstance(here, dict):
        keys = (key for key in here if _difference(there.get(key), here[key]))
        key = next(keys, None)
        return "" if key is None else _difference(there.get(key), here[key], f"{place}.{key}".lstrip("."))
    return "" if there == here else f"{place} is {there!r} there and {here!r} here"


@contextmanager
def _asked_to_stop() -> Iterator[list[int]]:
    """Signals that arrived: a step is not broken off, the loop looks here after each."""
    asked: list[int] = []

    def note(signum: int, _frame: FrameType | None) -> None:
        asked.append(signum)

    signals = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
    before = {signum: signal.signal(signum, note) for signum in signals}
    try:
        yield asked
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


# ---- teachers ----------------------------------------------------------------------------------------------------


def _named(recipe: Recipe, options: TrainOptions) -> list[tuple[str, Recipe | None]]:
    """(checkpoint given, None) or (a folder's name, recipe) per teacher. Raises UsageError for too many or too few."""
    names = recipe.distil.teachers if recipe.distil else ()
    if options.teachers and len(options.teachers) != len(names):
        raise UsageError(
            f"{len(options.teachers)} given, but {recipe.name} has {len(names)}: {', '.join(names) or 'none'}",
            place="--teacher",
            hint="give all of them in this order, or none to have them trained first",
        )
    if options.teachers:
        return [(path, None) for path in options.teachers]
    shared = [change for change in options.changes if change.startswith(("corpus.", "tokenizer."))]  # the same tokens
    made: list[tuple[str, Recipe | None]] = []
    for name, twins in ((name, names[:place].count(name)) for place, name in enumerate(names)):
        scale, seed = recipe.scale if recipe.scale in scales_of(name) else "", recipe.seed + twins  # twins differ in it
        made.append((f"{name}-{twins + 1}" if twins else name, read_recipe(name, scale, [*shared, f"seed={seed}"])))
    return made


def _fits(teacher: Recipe, student: Recipe) -> None:
    pairs = {"tokenizer": (teacher.tokenizer, student.tokenizer), "scale": (teacher.scale, student.scale)}
    same = ("layout", "eos", "words", "held_out")  # they decide the tokens, and which of them are trained on
    pairs |= {f"corpus.{key}": (getattr(teacher.corpus, key), getattr(student.corpus, key)) for key in same}
    for key, (theirs, ours) in pairs.items():
        if theirs != ours:
            raise DeclarationError(
                f"{teacher.name} cannot teach {student.name}: {theirs!r} there, {ours!r} here",
                place=f"{student.name}: {key}",
                hint="teacher and student read the same tokens",
            )


def _teacher(path: str, recipe: Recipe | None, text: Source, folder: Path, options: TrainOptions) -> Path | str | None:
    """A teacher's checkpoint: the one given, or one trained under the student's folder; None if that was stopped."""
    if recipe is None:
        return path
    own = replace(options, scale="", changes=(), teachers=(), resume=False, stop_after=None, trackers=())
    return _train(recipe, text, folder / "teachers" / path, own)


def _hash_teachers(teachers: Sequence[str | Path]) -> list[str]:
    """Hash the weights of each teacher's checkpoint. Raises CheckpointError where there is none."""
    from antlm_bench.checkpoints import OpenOptions
    from antlm_bench.checkpoints.resolve import locate

    options = OpenOptions()
    return [weight_hash(locate(str(path), options), options.allow_pickle) for path in teachers]


def _opened(folder: Path, corpus: Corpus) -> Any:
    """A teacher's model. Raises CheckpointError where it cannot be read, or reads other tokens than the student."""
    from antlm_bench.checkpoints import OpenOptions, pretrained
    from antlm_bench.checkpoints.resolve import locate
    from antlm_bench.training.corpus import same_tokens

    options = OpenOptions()
    place = locate(str(folder), options)
    with pretrained.quiet():
        config = pretrained.configuration_of(place, options)
        tokens = pretrained.tokenizer_of(place, options)
        if not (tokens.is_fast and same_tokens(tokens.backend_tokenizer, corpus.tokenizer.backend_tokenizer)):
            raise CheckpointError(
                "this teacher has another tokenizer than the student",
                place=str(folder),
                hint="train it on the same --corpus with the same [tokenizer], or leave --teacher out",
            )
        return pretrained.weights_of(place, pretrained.kind_of(config, place), config, options)
