"""Score items of lm-eval's tasks, and keep the task's own metrics beside the scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from antlm_bench.checkpoints import Checkpoint
from antlm_bench.lm_eval_bridge.greedy import GreedyTracker
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
    """Predict as multiple_choice.predict does, and add the task's metrics.

    They are NaN where a text that they need does not fit the model.
    """
    tracker = GreedyTracker(checkpoint)
    extra_requests = {item.id: task_metrics.scorers[item.id].extra_requests for item in items}
    extra_items = [
        Item(f"{item_id}, without its context", texts, 0)
        for item_id, texts in extra_requests.items()
        if texts
    ]
    all_items = [*items, *extra_items]
    by_method = multiple_choice.predict(tracker, all_items, methods, tick, reduction)
    # Per text, in the order of the scores.
    is_greedy = iter((tracker.num_non_greedy == 0).tolist())
    results = []
    for predictions in by_method:
        responses = [[(score, next(is_greedy)) for score in p.scores] for p in predictions]
        extra_indices = iter(range(len(items), len(predictions)))
        with_metrics = []
        for index, prediction in enumerate(predictions[: len(items)]):
            indices = [index, *([next(extra_indices)] if extra_requests[prediction.id] else [])]
            if any("too-long" in predictions[i].flags for i in indices):
                metrics = task_metrics.missing_metrics()
            else:
                scorer = task_metrics.scorers[prediction.id]
                metrics = scorer.score([response for i in indices for response in responses[i]])
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
    """Score whole documents; the task's metrics are their lengths in bytes and words.

    methods: the causal one only, see rolling.require_causal_method.
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
            judged=task_metrics.scorers[item.id].score([score]).values,
        )
        predictions.append(prediction)
    return [predictions for _ in methods]
