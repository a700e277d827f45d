"""train: a recipe and text in, checkpoints out; the same command again continues where it stopped.
"""

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
from antlm_bench.commands.progress_log import LOG_FILE, ProgressLog
from antlm_bench.declarations import suggest_name
from antlm_bench.errors import CheckpointError, DeclarationError, RunError, UsageError
from antlm_bench.training.recipe import Recipe, list_scales, read_recipe
from antlm_bench.training.text_sources import TextSource, load_text_source
from antlm_bench.weight_files import hash_weights

if TYPE_CHECKING:
    from antlm_bench.training.corpus import Corpus

RECORD_FILE = "train.json"
# Entries of the record that must be the same for a run to continue, beside its teachers.
COMPARED_KEYS = ("recipe", "text", "corpus_format", "precision")


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """What `train` can be told beside recipe, corpus and folder. See the command line's help.

    teachers: checkpoints for a distilled recipe, in its order; none = they are trained first.
    resume: there must be something to continue.
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


def train(
    recipe: str, corpus: str, out: str | Path, options: TrainOptions | None = None
) -> Path | None:
    """Train a recipe on a corpus; the folder of the final checkpoint, None if stopped before by
    `stop_after`.

    out: receives recipe and corpus digest (train.json), the log (train.jsonl), corpus/, state/,
    chck_1M ... and main. A finished run is left alone. An unfinished one continues if recipe, text,
    precision and the weights of its teachers are the same.

    Raises DeclarationError, DataError, UsageError (another run is in `out`), TrainingError,
    RunError.
    """
    options = options or TrainOptions()
    resolved = read_recipe(recipe, options.scale, options.changes)
    _check_trackers(options.trackers)
    text = load_text_source(corpus)
    folder = Path(out)
    for _, teacher in _resolve_teachers(
        resolved, options
    ):  # before anything is written: a misfit must not cost an hour
        if teacher:
            _check_teacher(teacher, resolved)
    return _train_recipe(resolved, text, folder, options)


def _train_recipe(
    recipe: Recipe, source: TextSource, folder: Path, options: TrainOptions
) -> Path | None:
    from accelerate import PartialState

    from antlm_bench.training import corpus as corpora
    from antlm_bench.training.pretrain import RuntimeSettings, Trainer, pretrain

    processes = PartialState(cpu=options.device == "cpu")
    main = processes.is_main_process
    with ExitStack() as stack:
        given = _hash_teachers(options.teachers) if main else []  # before anything is written
        if main:
            runs.make_folder(folder)
            stack.enter_context(runs.lock_folder(folder))
            _claim_folder(folder, _build_record(recipe, source, options, given), options.resume)
        if _read_record(folder).get("finished"):
            return folder / "main"
        trained = [
            _obtain_teacher(path, teacher, source, folder, options)
            for path, teacher in _resolve_teachers(recipe, options)
        ]
        teachers = [path for path in trained if path is not None]
        if len(teachers) < len(trained):
            return None
        if main and teachers and not options.teachers:
            _claim_trained_teachers(folder, _hash_teachers(teachers))
        with processes.main_process_first():
            rows = corpora.prepare_corpus(
                source, recipe.corpus, recipe.tokenizer, recipe.model.positions, folder / "corpus"
            )
        conditions = RuntimeSettings(
            device="cpu" if options.device == "cpu" else "auto",
            precision="bfloat16" if options.precision == "bfloat16" else "float32",
            micro_batch_tokens=options.micro_tokens,
            compile_model=options.compiled,
            save_every_minutes=options.save_every,
            stop_after=options.stop_after,
            trackers=tuple(options.trackers),
            tracker_dir=str(folder),
        )
        training = Trainer(
            recipe, rows, conditions, [_load_teacher(Path(path), rows) for path in teachers]
        )
        asked = stack.enter_context(_catch_stop_signals())
        watcher = stack.enter_context(ProgressLog(folder, recipe, asked, conditions, training))
        made = pretrain(training, folder, watcher, conditions)
        if made and main:  # only now: a kill after the last step leaves its scores to the next call
            _write_record(folder, _read_record(folder) | {"finished": True})
    if made is None and asked:  # everything is saved: now the signal may do what it is for
        signal.raise_signal(asked[0])
    return made


def _check_trackers(trackers: Sequence[str]) -> None:
    """Raises UsageError for a tracker that Accelerate does not know, or would leave out without a
    word.
    """
    if not trackers:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    for name in trackers:
        if name not in LOGGER_TYPE_TO_CLASS:
            hint = (
                suggest_name(name, LOGGER_TYPE_TO_CLASS)
                or f"one of {', '.join(LOGGER_TYPE_TO_CLASS)}"
            )
            raise UsageError(f"unknown tracker {name!r}", location="--track", hint=hint)
        if name not in map(str, get_available_trackers()):
            raise UsageError(
                f"{name!r} is not installed", location="--track", hint=f"pip install {name}"
            )


def _build_record(
    recipe: Recipe, source: TextSource, options: TrainOptions, teacher_hashes: list[str]
) -> dict[str, Any]:
    """Describe a run by everything that changes its weights by more than rounding.

    given: hashes of the weights of the teachers that --teacher names. Teachers that are trained
    first have no hash yet: `_claim_trained_teachers` adds it. A run without teachers has no such
    entry.
    """
    from antlm_bench.training.corpus import CORPUS_FORMAT_VERSION

    record: dict[str, Any] = {
        "recipe": recipe.model_dump(mode="json"),
        "corpus": source.name,
        "text": source.digest,
    }
    record |= {
        "corpus_format": CORPUS_FORMAT_VERSION,
        "precision": options.precision,
        "version": __version__,
    }
    if recipe.distil:
        record["teachers"] = {"given": bool(teacher_hashes), "weights": teacher_hashes}
    return record


def _claim_folder(folder: Path, record: dict[str, Any], resume: bool) -> None:
    """Write the record of a new run, or check that the folder's run is the same one.

    A record of another run is replaced if that run ended before its first step. Entries that older
    versions did not write are not compared. Raises UsageError, RunError.
    """
    existing = _read_record(folder)
    if existing:
        compared = {key: record[key] for key in COMPARED_KEYS if key in existing or key == "recipe"}
        difference = _describe_difference(existing, compared) or _describe_teacher_difference(
            existing, record
        )
        if not difference:
            return
        if resume or _has_steps(folder, existing):
            hint = "choose another --out, or give the same options to continue"
            raise UsageError(f"another run is here: {difference}", location=str(folder), hint=hint)
    elif resume:
        raise UsageError(
            "there is nothing to resume", location=str(folder), hint="leave --resume out to begin"
        )
    elif any(not file.name.startswith(".") for file in folder.iterdir()):
        raise UsageError(
            "this folder holds something else", location=str(folder), hint="choose another --out"
        )
    _write_record(folder, record)


def _has_steps(folder: Path, record: dict[str, Any]) -> bool:
    """Tell whether a run has made a step: it is finished, or has a state or a line in its log."""
    log = folder / LOG_FILE
    return (
        bool(record.get("finished"))
        or (folder / "state").exists()
        or (log.exists() and log.stat().st_size > 0)
    )


def _describe_teacher_difference(existing: dict[str, Any], record: dict[str, Any]) -> str:
    """Describe how the teachers of two records differ; "" if they agree or one does not say.

    Their order is not compared: it changes the mean of their logits by rounding only.
    """
    there, here = existing.get("teachers"), record.get("teachers")
    if there is None or here is None or sorted(there["weights"]) == sorted(here["weights"]):
        return ""
    if not here["given"]:
        return (
            ""
            if not there["given"]
            else "its teachers were given with --teacher, and here none are"
        )
    if not there["weights"]:
        return "its teachers are trained first, and here they are given with --teacher"
    return f"the weights of its teachers are {_shorten_hashes(there['weights'])} there and {_shorten_hashes(here['weights'])} here"


def _shorten_hashes(hashes: list[str]) -> str:
    return ", ".join(digest[:12] for digest in hashes)


def _claim_trained_teachers(folder: Path, hashes: list[str]) -> None:
    """Record the teachers that were trained first, or check that they are the recorded ones.

    Raises UsageError for other weights than those that the run's first steps learned from.
    """
    record = _read_record(folder)
    if "teachers" not in record:  # written by an older version
        return
    weights = {"given": False, "weights": hashes}
    if record["teachers"]["weights"] and _has_steps(folder, record):
        if sorted(record["teachers"]["weights"]) != sorted(hashes):
            recorded = _shorten_hashes(record["teachers"]["weights"])
            raise UsageError(
                f"the teachers have changed: their weights were {recorded} and are {_shorten_hashes(hashes)}",
                location=str(folder / "teachers"),
                hint="choose another --out",
            )
        return
    _write_record(folder, record | {"teachers": weights})


def _read_record(folder: Path) -> dict[str, Any]:
    """What the folder says of its run; nothing where there is none. Raises RunError."""
    path = folder / RECORD_FILE
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        raise RunError(
            f"cannot be read: {error}", location=str(path), hint="choose another --out"
        ) from error


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    runs.write_atomically(folder / RECORD_FILE, json.dumps(record, indent=1).encode())


def _describe_difference(existing: Any, new: Any, key_path: str = "") -> str:
    """The first key by which two records differ, with both values; "" where they agree."""
    if isinstance(existing, dict) and isinstance(new, dict):
        keys = (key for key in new if _describe_difference(existing.get(key), new[key]))
        key = next(keys, None)
        return (
            ""
            if key is None
            else _describe_difference(existing.get(key), new[key], f"{key_path}.{key}".lstrip("."))
        )
    return "" if existing == new else f"{key_path} is {existing!r} there and {new!r} here"


@contextmanager
def _catch_stop_signals() -> Iterator[list[int]]:
    """Signals that arrived: a step is not broken off, the loop looks here after each."""
    asked: list[int] = []

    def note(signum: int, _frame: FrameType | None) -> None:
        asked.append(signum)

    signals = [
        getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
    ]
    before = {signum: signal.signal(signum, note) for signum in signals}
    try:
        yield asked
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


# ---- teachers
# ----------------------------------------------------------------------------------------------------


def _resolve_teachers(recipe: Recipe, options: TrainOptions) -> list[tuple[str, Recipe | None]]:
    """(checkpoint given, None) or (a folder's name, recipe) per teacher. Raises UsageError for too
    many or too few.
    """
    names = recipe.distil.teachers if recipe.distil else ()
    if options.teachers and len(options.teachers) != len(names):
        raise UsageError(
            f"{len(options.teachers)} given, but {recipe.name} has {len(names)}: {', '.join(names) or 'none'}",
            location="--teacher",
            hint="give all of them in this order, or none to have them trained first",
        )
    if options.teachers:
        return [(path, None) for path in options.teachers]
    shared = [
        change for change in options.changes if change.startswith(("corpus.", "tokenizer."))
    ]  # the same tokens
    made: list[tuple[str, Recipe | None]] = []
    for name, twins in ((name, names[:place].count(name)) for place, name in enumerate(names)):
        scale, seed = (
            recipe.scale if recipe.scale in list_scales(name) else "",
            recipe.seed + twins,
        )  # twins differ in it
        made.append(
            (
                f"{name}-{twins + 1}" if twins else name,
                read_recipe(name, scale, [*shared, f"seed={seed}"]),
            )
        )
    return made


def _check_teacher(teacher: Recipe, student: Recipe) -> None:
    pairs = {
        "tokenizer": (teacher.tokenizer, student.tokenizer),
        "scale": (teacher.scale, student.scale),
    }
    same = (
        "layout",
        "eos",
        "words",
        "held_out",
    )  # they decide the tokens, and which of them are trained on
    pairs |= {
        f"corpus.{key}": (getattr(teacher.corpus, key), getattr(student.corpus, key))
        for key in same
    }
    for key, (theirs, ours) in pairs.items():
        if theirs != ours:
            raise DeclarationError(
                f"{teacher.name} cannot teach {student.name}: {theirs!r} there, {ours!r} here",
                location=f"{student.name}: {key}",
                hint="teacher and student read the same tokens",
            )


def _obtain_teacher(
    name_or_path: str,
    recipe: Recipe | None,
    source: TextSource,
    folder: Path,
    options: TrainOptions,
) -> Path | str | None:
    """A teacher's checkpoint: the one given, or one trained under the student's folder; None if
    that was stopped.
    """
    if recipe is None:
        return name_or_path
    own = replace(
        options, scale="", changes=(), teachers=(), resume=False, stop_after=None, trackers=()
    )
    return _train_recipe(recipe, source, folder / "teachers" / name_or_path, own)


def _hash_teachers(teachers: Sequence[str | Path]) -> list[str]:
    """Hash the weights of each teacher's checkpoint. Raises CheckpointError where there is none."""
    from antlm_bench.checkpoints import OpenOptions
    from antlm_bench.checkpoints.resolve import locate_checkpoint

    options = OpenOptions()
    return [
        hash_weights(locate_checkpoint(str(path), options), options.allow_pickle)
        for path in teachers
    ]


def _load_teacher(folder: Path, corpus: Corpus) -> Any:
    """A teacher's model. Raises CheckpointError where it cannot be read, or reads other tokens than
    the student.
    """
    from antlm_bench.checkpoints import OpenOptions, pretrained
    from antlm_bench.checkpoints.resolve import locate_checkpoint
    from antlm_bench.training.corpus import tokenizers_match

    options = OpenOptions()
    place = locate_checkpoint(str(folder), options)
    with pretrained.silence_transformers():
        config = pretrained.load_config(place, options)
        tokens = pretrained.load_tokenizer(place, options)
        if not (
            tokens.is_fast
            and tokenizers_match(tokens.backend_tokenizer, corpus.tokenizer.backend_tokenizer)
        ):
            raise CheckpointError(
                "this teacher has another tokenizer than the student",
                location=str(folder),
                hint="train it on the same --corpus with the same [tokenizer], or leave --teacher out",
            )
        return pretrained.load_model(place, pretrained.detect_kind(config, place), config, options)
