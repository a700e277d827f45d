"""Score items of lm-eval's tasks, and compute the values of the tasks' own metrics."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from antlm_bench.checkpoints import Checkpoint
from antlm_bench.lm_eval_bridge.greedy import GreedyTrackingModel
from antlm_bench.lm_eval_bridge.rolling import score_documents
from antlm_bench.lm_eval_bridge.task_metrics import TaskMetrics
from antlm_bench.predictions import OptionColumns, Predictions, item_flags
from antlm_bench.scoring import multiple_choice
from antlm_bench.scoring.methods import Method
from antlm_bench.types import Item, ProgressCallback


def predict_choices(
    checkpoint: Checkpoint,
    items: Sequence[Item],
    methods: Sequence[Method],
    tick: ProgressCallback | None,
    task_metrics: TaskMetrics,
    reduction: str,
) -> list[Predictions]:
    """Predict as multiple_choice.predict does, and add the task metric values of every item.

    These values are NaN if a text that they need does not fit the model.
    """
    greedy_model = GreedyTrackingModel(checkpoint)
    document_metrics = task_metrics.document_metrics
    # The unconditional options of an item form an additional item, after all others. Its gold is
    # not used.
    items_with_extras = [item for item in items if document_metrics[item.id].unconditional_options]
    extra_items = [
        Item(f"{item.id}, without its context", document_metrics[item.id].unconditional_options, 0)
        for item in items_with_extras
    ]
    extra_indices = {item.id: len(items) + n for n, item in enumerate(items_with_extras)}
    all_items = [*items, *extra_items]
    by_method = multiple_choice.predict(greedy_model, all_items, methods, tick, reduction)
    bounds = np.cumsum([0, *(len(item.options) for item in all_items)]).tolist()
    # One mark per scored text, ordered by method, item and option, as the scores. There are none
    # where no text fits the model.
    non_greedy = greedy_model.num_non_greedy
    if not len(non_greedy):
        non_greedy = np.ones(len(methods) * bounds[-1])
    greedy = (non_greedy == 0).reshape(len(methods), -1)
    results = []
    for predictions, greedy_marks in zip(by_method, greedy, strict=True):
        pairs = list(zip(predictions.flat("scores").tolist(), greedy_marks.tolist(), strict=True))
        responses = [pairs[start:end] for start, end in pairwise(bounds)]
        too_long = predictions.has_flag("too-long")
        metrics = []
        for index, item in enumerate(items):
            indices = [index]
            if item.id in extra_indices:
                indices.append(extra_indices[item.id])
            if too_long[indices].any():
                metrics.append(task_metrics.missing_values())
            else:
                item_responses = [response for i in indices for response in responses[i]]
                metrics.append(document_metrics[item.id].compute(item_responses))
        values = np.array([m.values for m in metrics], float).reshape(len(items), -1)
        scored = predictions.take(np.arange(len(items)))
        results.append(scored.with_task_values(values, [m.raw_values for m in metrics]))
    return results


def predict_documents(
    checkpoint: Checkpoint,
    items: Sequence[Item],
    methods: Sequence[Method],
    tick: ProgressCallback | None,
    task_metrics: TaskMetrics,
) -> list[Predictions]:
    """Score whole documents (lm-eval's loglikelihood_rolling).

    The task metric values are the numbers of bytes and words of each document, which normalise
    perplexities. methods: the causal method only (see rolling.require_causal_method).
    """
    texts = [item.options[0].text for item in items]
    documents = score_documents(checkpoint, texts, tick)
    n = len(items)
    counts = np.ones(n, np.int32)
    options = OptionColumns(
        counts, documents.scores, documents.tokens, np.array([len(text) for text in texts])
    )
    predictions = Predictions.build(
        items, np.zeros(n, np.int32), options, item_flags([documents.encodings], counts)
    )
    values = [
        task_metrics.document_metrics[item.id].compute([float(score)]).values
        for item, score in zip(items, documents.scores, strict=True)
    ]
    with_lengths = predictions.with_task_values(np.array(values, float).reshape(n, -1))
    return [with_lengths for _ in methods]
