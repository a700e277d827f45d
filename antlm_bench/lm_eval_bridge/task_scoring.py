"""Score items of lm-eval's tasks, and compute the values of the tasks' own metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from antlm_bench.checkpoints import Checkpoint
from antlm_bench.lm_eval_bridge.greedy import GreedyTrackingModel
from antlm_bench.lm_eval_bridge.rolling import score_documents
from antlm_bench.lm_eval_bridge.task_metrics import TaskMetrics
from antlm_bench.scoring import multiple_choice
from antlm_bench.scoring.methods import Method
from antlm_bench.types import Item, Prediction, ProgressCallback


def predict_choices(
    checkpoint: Checkpoint,
    items: Sequence[Item],
    methods: Sequence[Method],
    tick: ProgressCallback | None,
    task_metrics: TaskMetrics,
    reduction: str,
) -> list[list[Prediction]]:
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
    # One flag per scored text, ordered by method, item and option, as the scores.
    greedy_flags = iter((greedy_model.num_non_greedy == 0).tolist())
    results = []
    for predictions in by_method:
        responses = [[(score, next(greedy_flags)) for score in p.scores] for p in predictions]
        with_metrics = []
        for index, prediction in enumerate(predictions[: len(items)]):
            indices = [index]
            if prediction.id in extra_indices:
                indices.append(extra_indices[prediction.id])
            if any("too-long" in predictions[i].flags for i in indices):
                metrics = task_metrics.missing_values()
            else:
                metrics = document_metrics[prediction.id].compute(
                    [response for i in indices for response in responses[i]]
                )
            with_metrics.append(replace(prediction, judged=metrics.values, kept=metrics.raw_values))
        results.append(with_metrics)
    return results


def predict_documents(
    checkpoint: Checkpoint,
    items: Sequence[Item],
    methods: Sequence[Method],
    tick: ProgressCallback | None,
    task_metrics: TaskMetrics,
) -> list[list[Prediction]]:
    """Score whole documents (lm-eval's loglikelihood_rolling).

    The task metric values are the numbers of bytes and words of each document, which normalise
    perplexities. methods: the causal method only (see rolling.require_causal_method).
    """
    texts = [item.options[0].text for item in items]
    documents = score_documents(checkpoint, texts, tick)
    predictions = []
    for n, item in enumerate(items):
        score = float(documents.scores[n])
        prediction = Prediction(
            id=item.id,
            gold=item.gold,
            pred=0,
            scores=(score,),
            tokens=(int(documents.tokens[n]),),
            characters=(len(texts[n]),),
            labels=item.labels,
            flags=documents.encodings.collect_flags([n]),
            judged=task_metrics.document_metrics[item.id].compute([score]).values,
        )
        predictions.append(prediction)
    return [predictions for _ in methods]
