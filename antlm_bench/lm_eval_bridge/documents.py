"""Turn documents of an lm-eval task into items with the task's own requests, gold and metrics."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np

from antlm_bench.errors import DataError
from antlm_bench.lm_eval_bridge.jackknife import Aggregation
from antlm_bench.lm_eval_bridge.shims import install_shims
from antlm_bench.lm_eval_bridge.task_metrics import (
    LENGTH_EXTRACTORS,
    DocumentMetrics,
    MetricExtractor,
)
from antlm_bench.metrics.records import WORD_LABEL
from antlm_bench.packages import missing_package
from antlm_bench.suites.templates import check_text, hash_document
from antlm_bench.types import Item, Option

# The output types of lm-eval that can be scored.
MULTIPLE_CHOICE = "multiple_choice"
LOGLIKELIHOOD = "loglikelihood"
ROLLING = "loglikelihood_rolling"
GROUP_LEVELS = ("group", "task")  # label levels of items of an lm-eval group, outermost first
NO_GOLD = -1  # gold of a document whose right answer only the task's own code knows
BUILD_HINT = (
    "check whether `lm_eval run --tasks` can build the task: "
    "its data set and metrics must be installed, or the hub must be reachable"
)
INSTALL_HINT = (
    "install the missing package; for most tasks `pip install 'lm_eval[tasks]'` is enough "
    "(lm-eval's README lists its extras)"
)
# lm-eval's default seeds (lm_eval/defaults).
RANDOM_SEED, NUMPY_SEED, FEWSHOT_SEED = 0, 1234, 1234


@dataclass(frozen=True, slots=True)
class LmEvalTask:
    """A task object of lm-eval and its metrics."""

    name: str
    group: str
    """The lm-eval group of the task; "" if the reference names the task itself."""
    task_object: Any
    """lm-eval's Task."""
    mean_metrics: Mapping[str, MetricExtractor]
    """Metrics that are means over documents, in the task's order."""
    corpus_metrics: Mapping[str, Aggregation]
    """Metrics that are not means, with the function that computes them from all documents."""

    @property
    def metric_names(self) -> list[str]:
        """Names of the metrics that the task reports, in its order."""
        return [str(name) for name in self.task_object.aggregation()]

    @property
    def custom_process_results(self) -> Any:
        """The task's own function that scores responses; None if the task uses lm-eval's.

        A task class with its own requests counts as having its own function, too.
        """
        configured = self.task_object.config.process_results
        if callable(configured):
            return configured
        if self._inherits_method("process_results") and self.has_standard_requests:
            return None
        return self.task_object.process_results

    @property
    def has_standard_requests(self) -> bool:
        """Whether lm-eval builds the requests from the choices in the task's configuration."""
        return self._inherits_method("construct_requests")

    def _inherits_method(self, method: str) -> bool:
        """Return whether the task's class has lm-eval's own implementation of a method."""
        code = getattr(type(self.task_object), method)
        return (code.__module__, code.__qualname__) == (
            "lm_eval.api.task",
            f"ConfigurableTask.{method}",
        )

    def build_requests(self, limit: int | None, location: str) -> list[list[Any]]:
        """Return lm-eval's requests (Instances) of each document, in the order of its choices.

        limit: documents. Raises DataError if lm-eval fails.
        """
        with lm_eval_context(location):
            self.task_object.set_fewshot_seed(seed=FEWSHOT_SEED)
            self.task_object.build_all_requests(limit=limit, rank=0, world_size=1)
            documents = groupby(self.task_object.instances, key=lambda instance: instance.doc_id)
            return [sorted(requests, key=lambda request: request.idx) for _, requests in documents]

    def count_documents(self, location: str) -> int:
        """Return the number of documents of the task. Raises DataError if lm-eval fails."""
        with lm_eval_context(location):
            return len(list(self.task_object.eval_docs))

    def infer_output_type(self, requests_by_document: Sequence[Sequence[Any]]) -> str:
        """Return MULTIPLE_CHOICE, LOGLIKELIHOOD or ROLLING; else a description of other requests.

        The declared output type may be wrong (lm_eval 0.4.13's scrolls have choices and declare
        `generate_until`), so the type is inferred from the requests.
        """
        requests = [request for document in requests_by_document for request in document]
        types = {request.request_type for request in requests}
        is_text = all(isinstance(part, str) for request in requests for part in request.args)
        if types <= {LOGLIKELIHOOD, ROLLING} and not is_text:
            types.add("inputs other than text")
        has_choices = any(len(document) > 1 for document in requests_by_document)
        if types == {LOGLIKELIHOOD}:
            declares_choices = self.task_object.OUTPUT_TYPE == MULTIPLE_CHOICE
            return MULTIPLE_CHOICE if has_choices or declares_choices else LOGLIKELIHOOD
        if types == {ROLLING} and not has_choices:
            return ROLLING
        return " and ".join(sorted(types))


@dataclass(frozen=True, slots=True)
class DocumentItem:
    """A document of a task as an item, with the code that computes its task metric values."""

    item: Item
    metrics: DocumentMetrics
    has_multiple_golds: bool = False
    """Whether several options are right. Then only lm-eval's code can score the document."""


def request_to_option(context: str, continuation: str) -> Option:
    """Return a request of lm-eval as one text, of which the continuation is scored.

    White space at the end of the context is scored with the continuation, as in lm-eval
    (`TemplateLM._encode_pair`, 0.4.13), because a token includes the space before it. A token
    across the border of context and continuation is scored here. lm-eval instead scores the tokens
    after the first n, where n is the number of tokens of the context alone.
    """
    start = len(context.rstrip())
    text = context + continuation
    return Option(text, (start, len(text)) if start else None)


def build_document_items(
    task: LmEvalTask,
    requests_by_document: Sequence[Sequence[Any]],
    with_group_labels: bool,
    location: str,
) -> Iterator[DocumentItem]:
    """Yield the documents of a task as items. Their ids equal those of imported lm-eval results.

    with_group_labels: the task is one of several. Then equal documents of several tasks belong
    together (Item.cluster), e.g. a question with two lists of choices.
    """
    labels: dict[str, str] = {}
    if with_group_labels:
        names = zip(GROUP_LEVELS, (task.group, task.name), strict=True)
        labels = {level: name for level, name in names if name}
    output_type = task.infer_output_type(requests_by_document)
    for requests in requests_by_document:
        document, doc_id = requests[0].doc, requests[0].doc_id
        item_id = f"{task.name}_{doc_id}"
        metrics = DocumentMetrics(
            document,
            task.task_object.process_results,
            task.mean_metrics,
            location=f"{location}, document {doc_id}",
            task=task.name,
        )
        if output_type == ROLLING:
            text = check_text(requests[0].args[0], "document", metrics.location)
            item = Item(item_id, (Option(text),), 0, labels)
            yield DocumentItem(item, replace(metrics, extractors=LENGTH_EXTRACTORS))
        elif output_type == LOGLIKELIHOOD:
            option = _build_option(requests[0].args, None, metrics.location)
            # The headline of SURPRISAL is a mean over words: here each document counts as one word.
            word = {} if task.custom_process_results else {WORD_LABEL: item_id}
            yield DocumentItem(Item(item_id, (option,), 0, {**labels, **word}), metrics)
        else:
            document_item = _build_choice_item(task, requests, metrics, item_id, labels)
            if with_group_labels:
                item = replace(document_item.item, cluster=hash_document(document))
                document_item = replace(document_item, item=item)
            yield document_item


def _build_choice_item(
    task: LmEvalTask,
    requests: Sequence[Any],
    metrics: DocumentMetrics,
    item_id: str,
    labels: Mapping[str, str],
) -> DocumentItem:
    document, location = requests[0].doc, metrics.location
    with lm_eval_context(location):
        choices = [request.args[1] for request in requests]
        if task.has_standard_requests:
            choices = task.task_object.doc_to_choice(document)
        gold = _get_gold(task, document)
    # With acc_mutual_info, the requests of all choices are followed by those without context.
    choice_requests, unconditional = requests[: len(choices)], requests[len(choices) :]
    lengths = [len(choice) if task.has_standard_requests else None for choice in choices]
    options = [
        _build_option(request.args, length, location)
        for request, length in zip(choice_requests, lengths, strict=False)
    ]
    unconditional_options = [
        _build_option(request.args, None, location) for request in unconditional
    ]
    golds = _resolve_gold_indices(gold, choices, location, bool(task.custom_process_results))
    item = Item(item_id, tuple(options), golds[0], labels)
    metrics = replace(metrics, unconditional_options=tuple(unconditional_options))
    return DocumentItem(item, metrics, len(golds) > 1)


def _get_gold(task: LmEvalTask, document: Any) -> Any:
    """Return the gold as the task declares it.

    Returns NO_GOLD if a task with its own code declares none.
    """
    # With several inputs (winogrande) doc_to_text gives the index of the right input.
    multiple_input = getattr(task.task_object, "multiple_input", 0)
    to_gold = task.task_object.doc_to_text if multiple_input else task.task_object.doc_to_target
    if not task.custom_process_results:
        return to_gold(document)
    with suppress(Exception):
        return to_gold(document)
    return NO_GOLD


def _build_option(request: tuple[Any, ...], length: int | None, location: str) -> Option:
    """Return a request as an option. length: characters, by which acc_norm divides."""
    context, continuation = request[:2]
    check_text(context, "context", location)
    check_text(continuation, "continuation", location)
    if not continuation:
        hint = "correct the task's doc_to_choice or doc_to_target"
        raise DataError("a continuation is empty", location=location, hint=hint)
    return replace(request_to_option(context, continuation), length=length)


def _resolve_gold_indices(
    gold: Any, choices: list[str], location: str, has_own_code: bool
) -> tuple[int, ...]:
    """Return the indices of the right options.

    gold: the index or the text of an option, or a list of these. If it is neither, the result is
    (NO_GOLD,) for a task with its own code; other tasks raise DataError.
    """
    golds = gold if isinstance(gold, list) else [gold]
    indices = [choices.index(g) if isinstance(g, str) and g in choices else g for g in golds]
    if indices and all(
        isinstance(i, int | np.integer) and not isinstance(i, bool) and 0 <= i < len(choices)
        for i in indices
    ):
        return tuple(map(int, indices))
    if has_own_code:
        return (NO_GOLD,)
    message = f"the right answer {gold!r} is none of its {len(choices)} options"
    hint = (
        "use a split with answers, and a doc_to_target that gives an index or one of doc_to_choice"
    )
    raise DataError(message, location=location, hint=hint)


@contextmanager
def lm_eval_context(location: str) -> Iterator[None]:
    """Run code of lm-eval with its default seeds, without progress bars, and with shims installed.

    Raises DataError at `location` for any error in this context.
    """
    install_shims()
    python_state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(RANDOM_SEED)
    np.random.seed(NUMPY_SEED)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "lm_eval":
            raise missing_package(error.name, location) from error
        # SystemExit: 0.4.13's slr_bench ends the process if a program is not installed.
        message = f"lm-eval cannot build the task: {type(error).__name__}: {error}"
        hint = INSTALL_HINT if isinstance(error, ImportError) else BUILD_HINT
        raise DataError(message, location=location, hint=hint) from error
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
