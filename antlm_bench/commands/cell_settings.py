"""The settings of the cells of one suite, and their content keys. No model is run.

`_build_settings` lists everything that predictions depend on. The checkpoint is open, or its facts
are cached (checkpoints.checkpoint_records); the suite is loaded, or its facts are cached
(suite_records). The settings are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from antlm_bench.checkpoints.checkpoint_records import CheckpointInfo
from antlm_bench.checkpoints.metadata import select_content_key_metadata
from antlm_bench.commands.score_options import ScoreOptions
from antlm_bench.commands.suite_records import RecordedSuite, any_words_corrected
from antlm_bench.commands.work_estimates import estimate_work
from antlm_bench.errors import UsageError
from antlm_bench.lm_eval_bridge.rolling import require_causal_method
from antlm_bench.metrics import METRICS, ItemKind
from antlm_bench.metrics.records import UNIGRAM_MEASURE
from antlm_bench.progress import Workload
from antlm_bench.runs import RunWriter, Shard
from antlm_bench.runs.layout import content_key
from antlm_bench.scoring import multiple_choice
from antlm_bench.scoring.conventions import CONVENTIONS_VERSION, ScoringConventions
from antlm_bench.scoring.methods import get_method, peer_version
from antlm_bench.scoring.unigrams import TRAINING_TEXT, UnigramModel, open_unigrams
from antlm_bench.suites.task_types import TASK_TYPES, Suite, SuiteRequest, TaskType
from antlm_bench.words import check_splittable, describe_word_rule

AnyCheckpointInfo = TypeVar("AnyCheckpointInfo", bound=CheckpointInfo)
SuiteInfo = Suite | RecordedSuite
AnySuite = TypeVar("AnySuite", bound=SuiteInfo)


@dataclass(frozen=True, slots=True)
class SuiteToScore(Generic[AnySuite]):
    """A suite, and the methods that score it together, because they have the same conventions."""

    suite: AnySuite
    request: SuiteRequest
    """The request that loads the suite."""
    method_names: Sequence[str]
    options: ScoreOptions
    notes: Sequence[str]
    """Sentences on the checkpoint, for the summaries of the cells."""

    def estimate_work(self: SuiteToScore[Suite], names: Sequence[str]) -> Workload:
        """Return the work of some of the methods; of a shard, that of its chunks."""
        methods = [get_method(name) for name in names]
        items = self.suite.items
        work = estimate_work(items, methods)
        if self.options.shard is None or not items:
            return work
        sizes = [len(chunk) for chunk in multiple_choice.iter_chunks(items, methods)]
        indices = Shard.parse(self.options.shard).chunk_indices(len(sizes))
        num_items = sum(sizes[index] for index in indices)
        return Workload(num_items * len(methods), num_items / len(items) * work.cost)


class SuiteCells(Generic[AnyCheckpointInfo, AnySuite]):
    """The cells of one suite with one checkpoint."""

    def __init__(self, checkpoint: AnyCheckpointInfo, target: SuiteToScore[AnySuite]) -> None:
        """Raise UsageError or MethodNotSupported if the options cannot score the suite."""
        self.suite: AnySuite = target.suite
        self.target, self.options = target, target.options
        self.task_type = TASK_TYPES[self.suite.task_type]
        self.conventions = (
            self.options.conventions()
            .for_method(get_method(target.method_names[0]))
            .for_suite(self.suite.reduction, self.suite.has_delimiters, self.task_type.scores_spans)
        )
        if self.conventions.bos_before_context:
            checkpoint = checkpoint.with_context_bos_policy(self.conventions.bos_before_context)
        if self.conventions.eos and not self.task_type.scores_documents:
            checkpoint = checkpoint.with_scored_eos(self.conventions.eos)
        self.checkpoint: AnyCheckpointInfo = checkpoint
        _check_supported(self.suite, self.task_type, target.method_names, self.options)
        self.unigrams = _open_unigrams(
            checkpoint, self.suite, self.task_type, self.conventions.reduction, self.options
        )
        unigram_settings = {} if self.unigrams is None else {"unigrams": self.unigrams.digest}
        self.settings = {
            name: unigram_settings
            | _build_settings(checkpoint, self.suite, name, self.conventions, self.options)
            for name in target.method_names
        }
        self.keys = {name: content_key(values) for name, values in self.settings.items()}

    def is_complete(self, writer: RunWriter, method: str) -> bool:
        """Return whether the run folder has the cell of a method, with intact predictions."""
        suite = self.suite
        return writer.is_complete(suite.name, method, self.keys[method], origin=suite.origin)


def _check_supported(
    suite: SuiteInfo,
    task_type: TaskType,
    method_names: Sequence[str],
    options: ScoreOptions,
) -> None:
    """Raise UsageError or MethodNotSupported if the options cannot score this kind of suite."""
    if options.precision == "adaptive" and not task_type.depends_on_ranks_only:
        raise UsageError(
            f"{suite.name} needs exact probabilities, not choices between options",
            location="--precision",
            hint=f"use --precision exact{task_type.native_only_reason}",
        )
    if options.engine != "native" and not task_type.supports_other_engines:
        raise UsageError(
            f"{suite.name} scores {task_type.scored_noun}, which only the native engine does",
            location="--engine",
            hint=f"use --engine native{task_type.native_only_reason}",
        )
    if task_type.scores_documents:
        for name in method_names:
            require_causal_method(name, "--method")


def _open_unigrams(
    checkpoint: CheckpointInfo,
    suite: SuiteInfo,
    task_type: TaskType,
    reduction: str,
    options: ScoreOptions,
) -> UnigramModel | None:
    """Return the unigram model of a suite that uses one; None if the options name none.

    Raises UsageError if it is missing, or does not count the checkpoint's tokens.
    """
    if not task_type.uses_unigrams or not options.unigrams:
        if reduction == UNIGRAM_MEASURE:
            raise UsageError(
                f"{suite.name} is measured by SLOR, which needs a unigram model",
                location="--unigrams",
                hint="name a text whose tokens are counted: --unigrams FILE",
            )
        return None
    if options.engine != "native":
        raise UsageError(
            f"the engine {options.engine} does not tell which tokens it scores",
            location="--unigrams",
            hint="use --engine native",
        )
    if options.unigrams == TRAINING_TEXT and options.tokenizer:
        raise UsageError(
            "the training text is kept as tokens of another tokenizer",
            location=f"--unigrams {TRAINING_TEXT}",
            hint="name the text: --unigrams FILE",
        )
    folder = Path(str(checkpoint.metadata["given"]))
    return open_unigrams(options.unigrams, folder if folder.is_dir() else None)


def _build_settings(
    checkpoint: CheckpointInfo,
    suite: SuiteInfo,
    method: str,
    conventions: ScoringConventions,
    options: ScoreOptions,
) -> dict[str, Any]:
    """Return everything that the predictions of a cell depend on. Its hash is the cell's key."""
    return {
        **select_content_key_metadata(checkpoint),
        "suite": suite.name,
        "suite_version": suite.version,
        "suite_digest": suite.digest,
        "method": method,
        "precision": options.precision,
        "ties": conventions.ties,
        "reduction": conventions.reduction,
        "context": conventions.context,
        "compat": options.compat,
        # A limit that leaves nothing out gives the key of a run without a limit.
        "limit": None if suite.num_left_out == 0 else options.limit,
        "conventions": CONVENTIONS_VERSION,
        # Defaults add no keys, so that the keys of runs from before an option existed stay valid.
        **({"judge": suite.task_metrics.key_parts()} if suite.task_metrics else {}),
        **conventions.non_default_settings(
            has_ratings=METRICS[suite.metric].item_kind is ItemKind.RATING
        ),
        **({} if options.engine == "native" else {"engine": peer_version(options.engine)}),
        **_describe_words(suite, method, options),
    }


def choose_word_rule(target: SuiteToScore[Suite]) -> str | None:
    """Return the word rule of the options; None without one, or if the methods need no words.

    Raises UsageError if it does not split the suite's texts into words.
    """
    rule = target.options.words
    if rule is None or not get_method(target.method_names[0]).needs_words:
        return None
    for item in target.suite.items:
        for option in item.options:
            check_splittable(option.text, rule, f"{target.suite.name}: {item.id}")
    return rule


def _describe_words(suite: SuiteInfo, method: str, options: ScoreOptions) -> dict[str, str]:
    """Return the setting `words` of a cell; {} = the words of the tokenizer."""
    if options.words is not None and get_method(method).needs_words:
        return {"words": describe_word_rule(options.words)}
    return {"words": "graphemes"} if _has_corrected_words(suite, method, options) else {}


def _has_corrected_words(suite: SuiteInfo, method: str, options: ScoreOptions) -> bool:
    """Return whether a word of the suite has its borders corrected (scoring.tokens).

    Older versions did not correct them. Suites without such words keep the keys of older runs.
    """
    if options.engine != "native" or not get_method(method).needs_words:
        return False
    if isinstance(suite, RecordedSuite):
        return suite.has_corrected_words
    return any_words_corrected(suite)
