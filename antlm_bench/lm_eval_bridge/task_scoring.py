"""Items of a suite with a judge: asked like any others, and what the judge says of the answers kept
beside them.
"""

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
    """As choice.predict, with the judge's numbers; nan where a text that it needs does not fit the
    model.
    """
    reader = GreedyTracker(checkpoint)
    asides = {item.id: task_metrics.scorers[item.id].extra_requests for item in items}
    whole = [
        *items,
        *(
            Item(f"{name}, without its context", texts, 0)
            for name, texts in asides.items()
            if texts
        ),
    ]
    found = multiple_choice.predict(reader, whole, methods, tick, reduction)
    firsts = iter(
        (reader.num_non_greedy == 0).tolist()
    )  # of the texts in the order of their scores
    made = []
    for predictions in found:
        answers = [[(score, next(firsts)) for score in p.scores] for p in predictions]
        fits = ["too-long" not in p.flags for p in predictions]
        further = iter(range(len(items), len(predictions)))
        judged = []
        for number, prediction in enumerate(predictions[: len(items)]):
            more = [next(further)] if asides[prediction.id] else []
            asked = [answer for place in (number, *more) for answer in answers[place]]
            known = all(fits[place] for place in (number, *more))
            said = (
                task_metrics.scorers[prediction.id].score(asked)
                if known
                else task_metrics.missing_metrics()
            )
            judged.append(replace(prediction, judged=said.values, kept=said.raw_values))
        made.append(judged)
    return made


def predict_documents(
    checkpoint: Checkpoint,
    items: Sequence[Item],
    methods: Sequence[Method],
    tick: ProgressCallback | None,
    judge: TaskMetrics,
) -> list[list[Prediction]]:
    """Documents read whole, by the one method that can (see rolling.refuse); the judge says how
    long they are.
    """
    texts = [item.options[0].text for item in items]
    found = score_documents(checkpoint, texts, tick)
    return [
        [
            Prediction(
                id=item.id,
                gold=item.gold,
                pred=0,
                scores=(float(found.scores[n]),),
                tokens=(int(found.tokens[n]),),
                characters=(len(texts[n]),),
                labels=item.labels,
                flags=found.encodings.collect_flags([n]),
                judged=judge.scorers[item.id].score([float(found.scores[n])]).values,
            )
            for n, item in enumerate(items)
        ]
        for _ in methods
    ]
