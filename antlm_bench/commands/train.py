"""`train`: train a recipe on text. The same command again resumes a run that was stopped."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antlm_bench import __version__, runs
from antlm_bench.arguments import apply_settings, check_arguments
from antlm_bench.commands.progress_log import ProgressLog
from antlm_bench.commands.stop_requests import catch_stop_signals
from antlm_bench.declarations import suggest_name
from antlm_bench.errors import CheckpointError, DeclarationError, RunError, UsageError
from antlm_bench.packages import missing_package
from antlm_bench.progress import Progress, Workload
from antlm_bench.results.training_log import LOG_FILE
from antlm_bench.runs.folder_io import suggest_reading
from antlm_bench.runs.provenance import (
    PROVENANCE_FILE,
    PROVENANCE_SCHEMA_VERSION,
    ResourceMeter,
    read_provenance,
)
from antlm_bench.safe_files import read_regular_file
from antlm_bench.safe_json import parse_json
from antlm_bench.training.flops import forward_flops
from antlm_bench.training.recipe import Recipe, list_scales, read_recipe
from antlm_bench.training.schedule import describe_plan, plan_steps
from antlm_bench.training.text_sources import TextSource, describe_source, load_text_source
from antlm_bench.weight_files import hash_files, hash_weights

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from antlm_bench.keywords import TrainKeywords
    from antlm_bench.training.corpus import Corpus
    from antlm_bench.training.pretrain import RuntimeSettings, Trainer

RUN_METADATA_FILE = "train.json"
# Entries of train.json that must be equal to resume a run. Its teachers are compared separately.
COMPARED_KEYS = ("recipe", "text", "corpus_format", "precision")
# Files that may lie in the folder of a new run: hidden ones, and those of a job of Slurm.
IGNORED_PREFIXES = (".", "slurm.sh", "slurm-")


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """Options of `train` besides recipe, corpus and output folder."""

    scale: str = ""
    """A scale that the recipe declares, e.g. "nano"; "" = none."""
    changes: Sequence[str] = ()
    """Changes of the recipe (--set), e.g. "optimizer.lr=1e-3"."""
    teachers: Sequence[str] = ()
    """Teacher checkpoints in the order of distil.teachers; () = train them before the student."""
    resume: bool = False
    """Require an unfinished run in the folder. Runs are resumed with or without this option."""
    device: str = "auto"
    """auto (chosen by Accelerate) or cpu."""
    precision: str = "float32"
    """dtype of matrix products: float32 or bfloat16."""
    micro_tokens: int | None = None
    """Tokens per forward pass; None = depends on the device."""
    compiled: bool = False
    """Run torch.compile on the model."""
    save_every: float = 10.0
    """Minutes between two saved states."""
    stop_after: int | None = None
    """Save the state and stop after this step; None = train to the end."""
    trackers: Sequence[str] = field(default_factory=tuple)
    """Names of Accelerate's experiment trackers."""


@check_arguments(options=TrainOptions)
def train(
    recipe: str,
    corpus: str | Path,
    out: str | Path,
    options: TrainOptions | None = None,
    **settings: Unpack[TrainKeywords],
) -> Path | None:
    """Train a recipe on a corpus. Return the folder of the final checkpoint.

    Returns None if training was stopped before the end by `stop_after`. recipe: a name
    (`antlm-bench list models`) or a TOML. corpus: a folder of texts, a hub dataset, or "nano" (a
    small generated corpus). out: the output folder, for the run's metadata (train.json), the log
    (train.jsonl), provenance.json, corpus/, state/, and the checkpoints (chck_1M, ..., main).
    settings: fields of TrainOptions, which override `options`.

    A finished run is left alone. An unfinished one resumes if recipe, text, precision and the
    weights of its teachers are the same.

        antlm_bench.train("babyllama", "path/to/texts", "runs/babyllama", changes=["seed=2"])

    Raises DeclarationError, DataError, UsageError (`out` holds another run), TrainingError,
    RunError.
    """
    options = apply_settings(options or TrainOptions(), settings)
    resolved_recipe, source = check_training(recipe, str(corpus), options)
    teachers = [each for _, each in _resolve_teachers(resolved_recipe, options) if each]
    with Progress(unit="tokens", parts=("recipe", 1 + len(teachers))) as progress:
        return _train_recipe(resolved_recipe, source, Path(out), options, progress)


def check_training(recipe: str, corpus: str, options: TrainOptions) -> tuple[Recipe, TextSource]:
    """Read recipe and corpus, and check all that needs no model, the teachers' recipes included.

    Raises DeclarationError, DataError, UsageError.
    """
    resolved_recipe = read_recipe(recipe, options.scale, options.changes)
    _check_trackers(options.trackers)
    source = load_text_source(corpus)
    for _, teacher_recipe in _resolve_teachers(resolved_recipe, options):
        if teacher_recipe:
            _check_teacher(teacher_recipe, resolved_recipe)
    return resolved_recipe, source


def _train_recipe(
    recipe: Recipe,
    source: TextSource,
    folder: Path,
    options: TrainOptions,
    progress: Progress,
    later: Sequence[Recipe] = (),
) -> Path | None:
    """Train a recipe, after its teachers. later: the recipes that are trained after it."""
    from accelerate import PartialState

    from antlm_bench.training.corpus import prepare_corpus
    from antlm_bench.training.pretrain import Trainer, pretrain

    meter = ResourceMeter()
    processes = PartialState(cpu=options.device == "cpu")
    is_main = processes.is_main_process
    with ExitStack() as stack:
        teacher_hashes = _hash_teachers(options.teachers) if is_main else []
        if is_main:
            runs.make_folder(folder)
            for name in ("corpus", "state", "best", "teachers"):
                runs.reject_links(folder, folder / name)
            stack.enter_context(runs.lock_folder(folder))
            run_metadata = _build_run_metadata(recipe, source, options, teacher_hashes)
            _start_or_check_run(folder, run_metadata, options.resume)
        if _is_finished(folder):
            progress.next_part(f"{recipe.name} is trained")
            return folder / "main"
        teacher_paths = _train_teachers(recipe, source, folder, options, progress)
        if teacher_paths is None:
            return None
        if is_main and teacher_paths and not options.teachers:
            _record_teacher_hashes(folder, _hash_teachers(teacher_paths))
        label = f"{recipe.name} {recipe.scale}".strip()
        progress.next_part(f"{label}: preparing the text")
        with processes.main_process_first():
            corpus = prepare_corpus(
                source, recipe.corpus, recipe.tokenizer, recipe.model.positions, folder / "corpus"
            )
        runtime = _runtime_settings(options, folder)
        teacher_models = [_load_teacher(Path(path), corpus) for path in teacher_paths]
        trainer = Trainer(recipe, corpus, runtime, teacher_models)
        stop_signals = stack.enter_context(catch_stop_signals())
        work, *works = (_estimate_work(r, options, len(corpus)) for r in (recipe, *later))
        progress.plan_piece(label, work, works)
        for message in _describe_training(recipe, source, corpus) if is_main else ():
            progress.log(f"{label}: {message}")
        log = stack.enter_context(
            ProgressLog(folder, recipe, stop_signals, runtime, trainer, progress)
        )
        checkpoint = pretrain(trainer, folder, log, runtime)
        if is_main and (checkpoint or trainer.steps_done > log.steps_before):
            _record_provenance(folder, meter, trainer, log.steps_before + 1)
        # Written last: if the process is killed while ProgressLog scores the final checkpoint, the
        # next call scores it again.
        if checkpoint and is_main:
            finished = {"finished": True, "files": _hash_checkpoint(folder / "main")}
            _write_run_metadata(folder, _read_run_metadata(folder) | finished)
    if checkpoint is None and stop_signals:  # The state is saved, so the signal may take effect.
        signal.raise_signal(stop_signals[0])
    return checkpoint


def _record_provenance(
    folder: Path, meter: ResourceMeter, trainer: Trainer, first_step: int
) -> None:
    """Add a record of the steps that this call has made to provenance.json.

    A call that makes none ends a run that was killed after its last step.
    """
    last_step, device = trainer.steps_done, str(trainer.accelerator.device)
    key, steps = "no step", {}
    if first_step <= last_step:
        key = f"steps {first_step}-{last_step}"
        steps = {"first_step": first_step, "last_step": last_step}
    record = meter.build_record(key, device=device, **steps)
    records = [*read_provenance(folder).values(), record]
    document = {"schema": PROVENANCE_SCHEMA_VERSION, "records": records}
    data = json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"
    runs.write_atomically(folder / PROVENANCE_FILE, data)


def _estimate_work(recipe: Recipe, options: TrainOptions, num_tokens: int) -> Workload:
    """Return the tokens of a run, and its FLOPs, the forward passes of its teachers included."""
    steps = plan_steps(recipe, num_tokens)
    teachers = [each for _, each in _resolve_teachers(recipe, options) if each]
    flops = 3 * forward_flops(recipe, steps) + sum(forward_flops(t, steps) for t in teachers)
    return Workload(steps[-1].tokens_before + steps[-1].num_tokens, flops)


def _describe_training(recipe: Recipe, source: TextSource, corpus: Corpus) -> list[str]:
    """Return which text is trained on, and the tokens and steps as `show` states them."""
    plan = describe_plan(recipe, len(corpus))
    facts = "; ".join(f"{name}: {value}" for name, value in plan.items())
    return [describe_source(source, int(corpus.words_before_line[-1])), facts]


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
    """Raise UsageError for a tracker that Accelerate does not know, or that is not installed."""
    if not trackers:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    for name in trackers:
        if name not in LOGGER_TYPE_TO_CLASS:
            names = ", ".join(LOGGER_TYPE_TO_CLASS)
            hint = suggest_name(name, LOGGER_TYPE_TO_CLASS) or f"one of {names}"
            raise UsageError(f"unknown tracker {name!r}", location="--track", hint=hint)
        if name not in map(str, get_available_trackers()):
            raise missing_package(name, "--track", name)


def _build_run_metadata(
    recipe: Recipe, source: TextSource, options: TrainOptions, teacher_hashes: list[str]
) -> dict[str, Any]:
    """Return the content of train.json: everything that determines the weights, up to rounding.

    teacher_hashes: hashes of the weights that --teacher names. For teachers that this run trains
    itself it is empty, and `_record_teacher_hashes` adds the hashes later.
    """
    from antlm_bench.training.corpus import CORPUS_FORMAT_VERSION

    metadata: dict[str, Any] = {
        # Milestones change no weight, and versions without them resume.
        "recipe": recipe.model_dump(mode="json", exclude={"milestones"}),
        "corpus": source.name,
        "text": source.digest,
        "corpus_format": CORPUS_FORMAT_VERSION,
        "precision": options.precision,
        "version": __version__,
    }
    if recipe.distil:
        metadata["teachers"] = {"given": bool(teacher_hashes), "weights": teacher_hashes}
    return metadata


def _start_or_check_run(folder: Path, metadata: dict[str, Any], resume: bool) -> None:
    """Write train.json for a new run, or check that the folder holds the same run.

    The metadata of another run are overwritten if that run made no step. Entries that older
    versions did not write are not compared. Raises UsageError, RunError.
    """
    old = _read_run_metadata(folder)
    if old:
        # Every version wrote the recipe: without it, train.json is not that of a run.
        new = {key: metadata[key] for key in COMPARED_KEYS if key in old or key == "recipe"}
        difference = _describe_difference(old, new)
        difference = difference or _describe_teacher_difference(old, metadata)
        if not difference:
            return
        if resume or _has_steps(folder, old):
            raise UsageError(
                f"the folder holds another run: {difference}",
                location=str(folder),
                hint="choose another --out, or give the options of that run to continue it",
            )
    elif resume:
        raise UsageError(
            "there is nothing to resume", location=str(folder), hint="leave out --resume"
        )
    elif any(not file.name.startswith(IGNORED_PREFIXES) for file in folder.iterdir()):
        raise UsageError(
            f"the folder holds no training run (no {RUN_METADATA_FILE}), and is not empty",
            location=str(folder),
            hint="choose another --out",
        )
    _write_run_metadata(folder, metadata)


def _is_finished(folder: Path) -> bool:
    """Return whether a run is finished and its final checkpoint is what the training wrote.

    A missing checkpoint is not finished if there is a state to write it from. Raises RunError for
    one that is damaged, or missing without a state.
    """
    metadata = _read_run_metadata(folder)
    checkpoint, has_state = folder / "main", (folder / "state").exists()
    if not metadata.get("finished") or (has_state and not checkpoint.exists()):
        return False
    files = _hash_checkpoint(checkpoint)
    # Older versions wrote no hashes.
    expected = metadata.get("files") or {"model.safetensors": files.get("model.safetensors")}
    for name, digest in expected.items():
        if digest is None or files.get(name) != digest:
            action = f"delete {checkpoint}" if has_state else f"delete {folder}"
            outcome = "writes it again from the last state" if has_state else "trains it again"
            raise RunError(
                f"{name} is {'changed' if files.get(name) else 'missing'} since the training "
                "finished",
                location=str(checkpoint),
                hint=f"restore it, or {action}: then the same command {outcome}",
            )
    return True


def _hash_checkpoint(checkpoint: Path) -> dict[str, str]:
    """Return file -> sha256 of the files that decide what a checkpoint computes."""
    files = sorted([*checkpoint.glob("*.safetensors"), *checkpoint.glob("*.json")])
    return {file.name: hash_files([file]) for file in files}


def _has_steps(folder: Path, metadata: dict[str, Any]) -> bool:
    """Return whether a run has made a step: it is finished, or has a state or a line in its log."""
    log = folder / LOG_FILE
    has_log = log.exists() and log.stat().st_size > 0
    return bool(metadata.get("finished")) or (folder / "state").exists() or has_log


def _describe_teacher_difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Describe how the teachers of two runs differ; "" if they agree, or if either
    train.json has no entry "teachers".

    The order of teachers is not compared, because it changes the mean of their logits only by
    rounding errors.
    """
    old_teachers, new_teachers = old.get("teachers"), new.get("teachers")
    if old_teachers is None or new_teachers is None:
        return ""
    old_hashes, new_hashes = old_teachers["weights"], new_teachers["weights"]
    if sorted(old_hashes) == sorted(new_hashes):
        return ""
    if not new_teachers["given"]:
        if old_teachers["given"]:
            return "its teachers were given with --teacher, but --teacher is missing now"
        return ""  # each run trains its teachers: _record_teacher_hashes compares the hashes
    if not old_hashes:
        return "it trains its teachers itself, but --teacher is given now"
    return (
        f"the weights of its teachers were {_shorten_hashes(old_hashes)} "
        f"and are {_shorten_hashes(new_hashes)} now"
    )


def _shorten_hashes(hashes: list[str]) -> str:
    return ", ".join(digest[:12] for digest in hashes)


def _record_teacher_hashes(folder: Path, hashes: list[str]) -> None:
    """Write the hashes of teachers that this run trained, or check those in train.json.

    Raises UsageError if earlier steps of the run learned from other weights.
    """
    metadata = _read_run_metadata(folder)
    if "teachers" not in metadata:  # written by an older version
        return
    old_hashes = metadata["teachers"]["weights"]
    if old_hashes and _has_steps(folder, metadata):
        if sorted(old_hashes) != sorted(hashes):
            raise UsageError(
                "the teachers have changed: their weights were "
                f"{_shorten_hashes(old_hashes)} and are {_shorten_hashes(hashes)} now",
                location=str(folder / "teachers"),
                hint="choose another --out",
            )
        return
    teachers = {"given": False, "weights": hashes}
    _write_run_metadata(folder, metadata | {"teachers": teachers})


def _read_run_metadata(folder: Path) -> dict[str, Any]:
    """Return the content of the folder's train.json, {} if there is none. Raises RunError."""
    path = folder / RUN_METADATA_FILE
    try:
        return dict(parse_json(read_regular_file(path)))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        raise RunError(
            f"cannot be read: {error}",
            location=str(path),
            hint=suggest_reading(error, "choose another --out"),
        ) from error


def _write_run_metadata(folder: Path, metadata: dict[str, Any]) -> None:
    runs.write_atomically(folder / RUN_METADATA_FILE, json.dumps(metadata, indent=1).encode())


def _describe_difference(old: Any, new: Any, key_path: str = "") -> str:
    """Return the first key of `new` that has another value in `old`, with both values, or ""."""
    if old == new:
        return ""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return f"{key_path} is {old!r} in {RUN_METADATA_FILE} and {new!r} now"
    for key, value in new.items():
        difference = _describe_difference(old.get(key), value, f"{key_path}.{key}".lstrip("."))
        if difference:
            return difference
    return ""


# ---- teachers


def _resolve_teachers(recipe: Recipe, options: TrainOptions) -> list[tuple[str, Recipe | None]]:
    """Return one pair per teacher.

    (checkpoint, None) is a teacher of --teacher. (folder name, recipe) is a teacher that this run
    trains; a recipe that occurs twice is trained with two seeds. Raises UsageError if
    `options.teachers` has the wrong number of teachers.
    """
    names = recipe.distil.teachers if recipe.distil else ()
    if options.teachers and len(options.teachers) != len(names):
        raise UsageError(
            f"teachers given: {len(options.teachers)}, but {recipe.name} has {len(names)}: "
            f"{', '.join(names) or 'none'}",
            location="--teacher",
            hint="give all teachers in this order, or none to train them before the student",
        )
    if options.teachers:
        return [(path, None) for path in options.teachers]
    # Teachers must have the tokens of the student, so these changes are theirs, too.
    token_changes = [c for c in options.changes if c.startswith(("corpus.", "tokenizer."))]
    teachers: list[tuple[str, Recipe | None]] = []
    for index, name in enumerate(names):
        num_earlier = names[:index].count(name)
        scale = recipe.scale if recipe.scale in list_scales(name) else ""
        seed = recipe.seed + num_earlier
        teacher_recipe = read_recipe(name, scale, [*token_changes, f"seed={seed}"])
        folder_name = f"{name}-{num_earlier + 1}" if num_earlier else name
        teachers.append((folder_name, teacher_recipe))
    return teachers


def _check_teacher(teacher: Recipe, student: Recipe) -> None:
    """Raise DeclarationError unless teacher and student have the same tokenizer, corpus settings
    and scale.
    """
    pairs: dict[str, tuple[Any, Any]] = {
        "tokenizer": (teacher.tokenizer, student.tokenizer),
        "scale": (teacher.scale, student.scale),
    }
    for key in ("layout", "eos", "words", "held_out"):
        pairs[f"corpus.{key}"] = getattr(teacher.corpus, key), getattr(student.corpus, key)
    for key, (teacher_value, student_value) in pairs.items():
        if teacher_value != student_value:
            raise DeclarationError(
                f"{teacher.name} cannot teach {student.name}: the teacher has {teacher_value!r}, "
                f"the student {student_value!r}",
                location=f"{student.name}: {key}",
                hint="use recipes with the same tokenizer, corpus and scale",
            )


def _train_teachers(
    recipe: Recipe,
    source: TextSource,
    folder: Path,
    options: TrainOptions,
    progress: Progress,
) -> list[str | Path] | None:
    """Return the checkpoints of all teachers. Trains those that are not given with --teacher.

    Returns None if their training was stopped.
    """
    teacher_options = replace(
        options, scale="", changes=(), teachers=(), resume=False, stop_after=None, trackers=()
    )
    teacher_paths: list[str | Path] = []
    teachers = _resolve_teachers(recipe, options)
    for number, (name_or_path, teacher_recipe) in enumerate(teachers, 1):
        path: str | Path | None = name_or_path
        if teacher_recipe:
            teacher_folder = folder / "teachers" / name_or_path
            later = [*(each for _, each in teachers[number:] if each), recipe]
            path = _train_recipe(
                teacher_recipe, source, teacher_folder, teacher_options, progress, later
            )
        if path is None:
            return None
        teacher_paths.append(path)
    return teacher_paths


def _hash_teachers(teacher_paths: Sequence[str | Path]) -> list[str]:
    """Hash the weights of each teacher's checkpoint. Raises CheckpointError if there is none."""
    from antlm_bench.checkpoints import OpenOptions
    from antlm_bench.checkpoints.resolve import locate_checkpoint

    options = OpenOptions()
    paths = [locate_checkpoint(str(path), options) for path in teacher_paths]
    return [hash_weights(path, options.allow_pickle) for path in paths]


def _load_teacher(folder: Path, corpus: Corpus) -> Any:
    """Load a teacher. Raises CheckpointError if it is unreadable or has another tokenizer."""
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
                "the teacher has another tokenizer than the student",
                location=str(folder),
                hint="train the teacher on the same --corpus with the same [tokenizer], "
                "or leave out --teacher",
            )
        return pretrained.load_model(path, pretrained.detect_kind(config, path), config, options)
