"""Train a recipe on text: checkpoints and a log; the same command again resumes the run."""

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
from antlm_bench.commands.progress_log import ProgressLog
from antlm_bench.declarations import suggest_name
from antlm_bench.errors import CheckpointError, DeclarationError, RunError, UsageError
from antlm_bench.results.training_log import LOG_FILE
from antlm_bench.training.recipe import Recipe, list_scales, read_recipe
from antlm_bench.training.text_sources import TextSource, load_text_source
from antlm_bench.weight_files import hash_weights

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from antlm_bench.keywords import TrainKeywords
    from antlm_bench.training.corpus import Corpus
    from antlm_bench.training.pretrain import RuntimeSettings

RECORD_FILE = "train.json"
# Entries of the record that must be equal for a run to resume, beside its teachers.
COMPARED_KEYS = ("recipe", "text", "corpus_format", "precision")


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """Options of `train`, beside recipe, corpus and folder."""

    scale: str = ""
    """A smaller version that the recipe declares: nano, small."""
    changes: Sequence[str] = ()
    """Changes of the recipe, as "optimizer.lr=1e-3"."""
    teachers: Sequence[str] = ()
    """Checkpoints for a distilled recipe, in its order; () = train them first."""
    resume: bool = False
    """Refuse to begin anew."""
    device: str = "auto"
    """auto (what Accelerate finds) or cpu."""
    precision: str = "float32"
    """Of matrix products: float32 or bfloat16."""
    micro_tokens: int | None = None
    """Tokens per forward, None = by device."""
    compiled: bool = False
    """Run torch.compile on the model."""
    save_every: float = 10.0
    """Minutes between two saved states."""
    stop_after: int | None = None
    """Stop after so many steps, with a saved state."""
    trackers: Sequence[str] = field(default_factory=tuple)
    """Names of Accelerate's experiment trackers."""


def train(
    recipe: str,
    corpus: str | Path,
    out: str | Path,
    options: TrainOptions | None = None,
    **settings: Unpack[TrainKeywords],
) -> Path | None:
    """Train a recipe on a corpus. Return the folder of the final checkpoint.

    Returns None if training was stopped before the end by `stop_after`. recipe: a name
    (`antlm-bench list models`) or a TOML. corpus: a folder of texts, a hub dataset, or "nano". out:
    receives the record of the run (train.json), the log (train.jsonl), corpus/, state/, and the
    checkpoints chck_1M ... and main. settings: options of the command line by their names, on top
    of `options`.

    A finished run is left alone. An unfinished one resumes if recipe, text, precision and the
    weights of its teachers are the same.

        antlm_bench.train("babyllama", "path/to/texts", "runs/babyllama", changes=["seed=2"])

    Raises DeclarationError, DataError, UsageError (`out` holds another run), TrainingError,
    RunError.
    """
    options = replace(options or TrainOptions(), **settings)
    resolved_recipe = read_recipe(recipe, options.scale, options.changes)
    _check_trackers(options.trackers)
    source = load_text_source(str(corpus))
    # Before anything is written: a teacher that does not fit must not cost an hour.
    for _, teacher in _resolve_teachers(resolved_recipe, options):
        if teacher:
            _check_teacher(teacher, resolved_recipe)
    return _train_recipe(resolved_recipe, source, Path(out), options)


def _train_recipe(
    recipe: Recipe, source: TextSource, folder: Path, options: TrainOptions
) -> Path | None:
    from accelerate import PartialState

    from antlm_bench.training.corpus import prepare_corpus
    from antlm_bench.training.pretrain import Trainer, pretrain

    processes = PartialState(cpu=options.device == "cpu")
    is_main = processes.is_main_process
    with ExitStack() as stack:
        teacher_hashes = _hash_teachers(options.teachers) if is_main else []
        if is_main:
            runs.make_folder(folder)
            stack.enter_context(runs.lock_folder(folder))
            record = _build_record(recipe, source, options, teacher_hashes)
            _claim_folder(folder, record, options.resume)
        if _read_record(folder).get("finished"):
            return folder / "main"
        teachers = [
            _obtain_teacher(name_or_path, teacher, source, folder, options)
            for name_or_path, teacher in _resolve_teachers(recipe, options)
        ]
        teacher_paths = [path for path in teachers if path is not None]
        if len(teacher_paths) < len(teachers):
            return None
        if is_main and teachers and not options.teachers:
            _claim_trained_teachers(folder, _hash_teachers(teacher_paths))
        with processes.main_process_first():
            corpus = prepare_corpus(
                source, recipe.corpus, recipe.tokenizer, recipe.model.positions, folder / "corpus"
            )
        settings = _runtime_settings(options, folder)
        teacher_models = [_load_teacher(Path(path), corpus) for path in teacher_paths]
        trainer = Trainer(recipe, corpus, settings, teacher_models)
        stop_signals = stack.enter_context(_catch_stop_signals())
        log = stack.enter_context(ProgressLog(folder, recipe, stop_signals, settings, trainer))
        checkpoint = pretrain(trainer, folder, log, settings)
        # Only now: after a kill behind the last step, the next call scores the checkpoint.
        if checkpoint and is_main:
            _write_record(folder, _read_record(folder) | {"finished": True})
    if checkpoint is None and stop_signals:  # all is saved: now the signal may end the process
        signal.raise_signal(stop_signals[0])
    return checkpoint


def _runtime_settings(options: TrainOptions, folder: Path) -> RuntimeSettings:
    from antlm_bench.training.pretrain import RuntimeSettings

    return RuntimeSettings(
        device="cpu" if options.device == "cpu" else "auto",
        precision="bfloat16" if options.precision == "bfloat16" else "float32",
        micro_batch_tokens=options.micro_tokens,
        compile_model=options.compiled,
        save_every_minutes=options.save_every,
        stop_after=options.stop_after,
        trackers=tuple(options.trackers),
        tracker_dir=str(folder),
    )


def _check_trackers(trackers: Sequence[str]) -> None:
    """Raise UsageError for a tracker that Accelerate does not know, or would silently leave out."""
    if not trackers:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    for name in trackers:
        if name not in LOGGER_TYPE_TO_CLASS:
            names = ", ".join(LOGGER_TYPE_TO_CLASS)
            hint = suggest_name(name, LOGGER_TYPE_TO_CLASS) or f"one of {names}"
            raise UsageError(f"unknown tracker {name!r}", location="--track", hint=hint)
        if name not in map(str, get_available_trackers()):
            raise UsageError(
                f"{name!r} is not installed", location="--track", hint=f"pip install {name}"
            )


def _build_record(
    recipe: Recipe, source: TextSource, options: TrainOptions, teacher_hashes: list[str]
) -> dict[str, Any]:
    """Describe a run by everything that changes its weights by more than rounding.

    teacher_hashes: of the weights of the teachers that --teacher names. Teachers that are trained
    first have no hash yet: `_claim_trained_teachers` adds it. A run without teachers has no such
    entry.
    """
    from antlm_bench.training.corpus import CORPUS_FORMAT_VERSION

    record: dict[str, Any] = {
        "recipe": recipe.model_dump(mode="json"),
        "corpus": source.name,
        "text": source.digest,
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
        difference = _describe_difference(existing, compared)
        difference = difference or _describe_teacher_difference(existing, record)
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
    """Return whether a run has made a step: it is finished, or has a state or a line in its log."""
    log = folder / LOG_FILE
    has_log = log.exists() and log.stat().st_size > 0
    return bool(record.get("finished")) or (folder / "state").exists() or has_log


def _describe_teacher_difference(existing: dict[str, Any], record: dict[str, Any]) -> str:
    """Describe how the teachers of two records differ; "" if they agree or one has no entry.

    Their order is not compared: it changes the mean of their logits by rounding only.
    """
    old, new = existing.get("teachers"), record.get("teachers")
    if old is None or new is None or sorted(old["weights"]) == sorted(new["weights"]):
        return ""
    if not new["given"]:
        return "its teachers were given with --teacher, and here none are" if old["given"] else ""
    if not old["weights"]:
        return "its teachers are trained first, and here they are given with --teacher"
    old_hashes, new_hashes = (_shorten_hashes(entry["weights"]) for entry in (old, new))
    return f"the weights of its teachers are {old_hashes} there and {new_hashes} here"


def _shorten_hashes(hashes: list[str]) -> str:
    return ", ".join(digest[:12] for digest in hashes)


def _claim_trained_teachers(folder: Path, hashes: list[str]) -> None:
    """Record the teachers that were trained first, or check that they are the recorded ones.

    Raises UsageError if the run's first steps learned from other weights.
    """
    record = _read_record(folder)
    if "teachers" not in record:  # written by an older version
        return
    recorded = record["teachers"]["weights"]
    if recorded and _has_steps(folder, record):
        if sorted(recorded) != sorted(hashes):
            raise UsageError(
                "the teachers have changed: their weights were "
                f"{_shorten_hashes(recorded)} and are {_shorten_hashes(hashes)}",
                location=str(folder / "teachers"),
                hint="choose another --out",
            )
        return
    _write_record(folder, record | {"teachers": {"given": False, "weights": hashes}})


def _read_record(folder: Path) -> dict[str, Any]:
    """Return the record of the folder's run, empty if there is none. Raises RunError."""
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
    """Return the first key by which two records differ, with both values; "" if they agree."""
    if existing == new:
        return ""
    if not (isinstance(existing, dict) and isinstance(new, dict)):
        return f"{key_path} is {existing!r} there and {new!r} here"
    differences = (
        _describe_difference(existing.get(key), value, f"{key_path}.{key}".lstrip("."))
        for key, value in new.items()
    )
    return next(filter(None, differences), "")


@contextmanager
def _catch_stop_signals() -> Iterator[list[int]]:
    """Collect the signals that arrive inside: the loop looks here after each step."""
    stop_signals: list[int] = []

    def handle_signal(signum: int, _frame: FrameType | None) -> None:
        stop_signals.append(signum)

    names = ("SIGINT", "SIGTERM", "SIGUSR1")
    caught = [getattr(signal, name) for name in names if hasattr(signal, name)]
    handlers = {signum: signal.signal(signum, handle_signal) for signum in caught}
    try:
        yield stop_signals
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


# ---- teachers


def _resolve_teachers(recipe: Recipe, options: TrainOptions) -> list[tuple[str, Recipe | None]]:
    """Return (checkpoint, None) per given teacher, or (name of a folder, recipe) per teacher to be
    trained.

    A recipe that is named twice is trained with two seeds. Raises UsageError if the number of given
    teachers is wrong.
    """
    names = recipe.distil.teachers if recipe.distil else ()
    if options.teachers and len(options.teachers) != len(names):
        raise UsageError(
            f"{len(options.teachers)} given, but {recipe.name} has {len(names)}: "
            f"{', '.join(names) or 'none'}",
            location="--teacher",
            hint="give all of them in this order, or none to have them trained first",
        )
    if options.teachers:
        return [(path, None) for path in options.teachers]
    # Teachers read the same tokens as the student.
    shared = [c for c in options.changes if c.startswith(("corpus.", "tokenizer."))]
    teachers: list[tuple[str, Recipe | None]] = []
    for index, name in enumerate(names):
        repeat = names[:index].count(name)
        scale = recipe.scale if recipe.scale in list_scales(name) else ""
        teacher = read_recipe(name, scale, [*shared, f"seed={recipe.seed + repeat}"])
        teachers.append((f"{name}-{repeat + 1}" if repeat else name, teacher))
    return teachers


def _check_teacher(teacher: Recipe, student: Recipe) -> None:
    """Raise DeclarationError unless teacher and student read the same tokens."""
    pairs: dict[str, tuple[Any, Any]] = {
        "tokenizer": (teacher.tokenizer, student.tokenizer),
        "scale": (teacher.scale, student.scale),
    }
    for key in ("layout", "eos", "words", "held_out"):
        pairs[f"corpus.{key}"] = getattr(teacher.corpus, key), getattr(student.corpus, key)
    for key, (of_teacher, of_student) in pairs.items():
        if of_teacher != of_student:
            raise DeclarationError(
                f"{teacher.name} cannot teach {student.name}: "
                f"{of_teacher!r} there, {of_student!r} here",
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
    """Return a teacher's checkpoint: the given one, or one trained under the student's folder.

    Return None if its training was stopped.
    """
    if recipe is None:
        return name_or_path
    own_options = replace(
        options, scale="", changes=(), teachers=(), resume=False, stop_after=None, trackers=()
    )
    return _train_recipe(recipe, source, folder / "teachers" / name_or_path, own_options)


def _hash_teachers(teachers: Sequence[str | Path]) -> list[str]:
    """Hash the weights of each teacher's checkpoint. Raises CheckpointError if there is none."""
    from antlm_bench.checkpoints import OpenOptions
    from antlm_bench.checkpoints.resolve import locate_checkpoint

    options = OpenOptions()
    paths = [locate_checkpoint(str(path), options) for path in teachers]
    return [hash_weights(path, options.allow_pickle) for path in paths]


def _load_teacher(folder: Path, corpus: Corpus) -> Any:
    """Load a teacher's model. Raises CheckpointError if it cannot be read, or reads other tokens
    than the student.
    """
    from antlm_bench.checkpoints import OpenOptions, pretrained
    from antlm_bench.checkpoints.resolve import locate_checkpoint
    from antlm_bench.training.corpus import tokenizers_match

    options = OpenOptions()
    path = locate_checkpoint(str(folder), options)
    with pretrained.silence_transformers():
        config = pretrained.load_config(path, options)
        tokenizer = pretrained.load_tokenizer(path, options)
        if not tokenizer.is_fast or not tokenizers_match(
            tokenizer.backend_tokenizer, corpus.tokenizer.backend_tokenizer
        ):
            raise CheckpointError(
                "this teacher has another tokenizer than the student",
                location=str(folder),
                hint="train it on the same --corpus with the same [tokenizer], "
                "or leave --teacher out",
            )
        return pretrained.load_model(path, pretrained.detect_kind(config, path), config, options)
