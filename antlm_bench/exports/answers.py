"""What a run answered, in the words of a leaderboard's file: texts that were chosen, numbers, surprisals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from antlm_bench.errors import IncompleteError
from antlm_bench.exports.leaderboard import PartSpec, Writes
from antlm_bench.metrics.measures import Spearman
from antlm_bench.metrics.table import chosen, tabulate
from antlm_bench.suites.items import Suite
from antlm_bench.types import Cell, Item, Option, Prediction

Answers = dict[str, dict[str, list[dict[str, Any]]]]  # subkey -> {"predictions": rows}
Entry = dict[str, float]


def whole(cell: Cell) -> Cell:
    """The cell. IncompleteError where items are missing."""
    if short := [note for note in cell.summary.notes if note.startswith("incomplete")]:
        raise IncompleteError(short[0], hint="get all data (antlm-bench data fetch), then score again")
    return cell


def numbers(cell: Cell, part: PartSpec) -> Entry:
    """What a fast suite says of a milestone, in 0..1: accuracies (a tie counts 1/k), Spearman's rho, partial R2.

    Numbers have room for half a tie; only answers have not.
    """
    groups = cell.summary.groups
    if part.names:
        return {part.names[group.name]: group.estimate.value for group in groups if group.name in part.names}
    if cell.summary.metric == "spearman" or not groups:
        return {part.key: cell.summary.headline.value}
    return {group.name: group.estimate.value for group in groups if group.level == groups[-1].level}


def texts_chosen(
    part: PartSpec, predictions: Sequence[Prediction], suite: Suite, cell: Cell
) -> tuple[Answers, list[str]]:
    """The chosen texts under the keys of their part, in the suite's order, and notes about ties and lost items.

    The file can hold one answer. A tie never goes silently to the right one, as the collator of 2025 has it
    (torch.max: first index, and index 0 is right): it is drawn, by the item's id (metrics: ties = random; 2026's
    official code draws too, unseeded). A run that was scored with --ties first says so and keeps that rule. An item
    that does not fit the model counts as wrong, and is written so.
    """
    rule = "first" if cell.settings.get("ties") == "first" else "random"
    reduction = str(cell.settings.get("reduction", "sum"))
    table = tabulate(predictions, set(), reduction)
    picks = chosen(table, rule, reduction).argmax(axis=1)
    lost = table.flag("too-long")
    share = Spearman("half", reduction).values(table, reduction) if part.writes == "share" else np.zeros(len(picks))
    level = part.by or suite.groups[-1]
    items = {item.id: item for item in suite.items}
    answers: Answers = defaultdict(lambda: {"predictions": []})
    for n, prediction in enumerate(predictions):
        item = items[prediction.id]
        right = item.gold if isinstance(item.gold, int) else 0
        pick = int(picks[n]) if not lost[n] else int(right == 0)
        row: dict[str, Any] = {"id": item.id, "pred": written(part.writes, item, pick)}
        if part.writes == "share":
            row["prob"] = float(share[n])
        answers[item.labels[level]]["predictions"].append(row)
    ties, twins = int(table.flag("tie").sum()), int(table.flag("identical").sum())
    notes = []
    if ties:
        how = "given to the first option (--ties first)" if rule == "first" else "drawn by the item's id"
        notes.append(
            f"{suite.name}: {ties} ties, {how}" + (f"; {twins} of one text count as right there" if twins else "")
        )
    if lost.any():
        notes.append(f"{suite.name}: {int(lost.sum())} items do not fit the model and are written as wrong")
    return dict(answers), notes


def written(writes: Writes, item: Item, pick: int) -> str:
    """The text that stands for an option: all of it, or the part that was scored."""
    option = item.options[pick]
    if writes == "continuation":
        return continued(option)
    return option.text if writes == "sentence" or option.span is None else option.text[slice(*option.span)]


def continued(option: Option) -> str:
    r"""What lm-eval asks after a context: its delimiter, one space, before a text without context; a scored part has
    that space already. The collator of 2024 (_add_to_dict) makes a line end of the two characters \n."""
    asked = option.text[slice(*option.span)] if option.span else f" {option.text}"
    return asked.replace("\\n", "\n")


def surprisals(predictions: Sequence[Prediction]) -> Iterator[dict[str, Any]]:
    """Surprisals in nats of each word and of the word before it; NaN where there is none, as officially.

    IncompleteError for words that do not fit the model: the file has no way to say so.
    """
    if lost := [p.id for p in predictions if "too-long" in p.flags]:
        raise IncompleteError(f"{len(lost)} words do not fit the model", hint=f"the first is {lost[0]}")
    for n, prediction in enumerate(predictions):
        before = -prediction.scores[1] if len(prediction.scores) > 1 else float("nan")
        yield {"id": n, "pred": -prediction.scores[0], "prev_pred": before}


def curve(predictions: Sequence[Prediction], suite: Suite, milestone: int) -> Iterator[dict[str, Any]]:
    """The surprisal in nats of every word in its contexts at a milestone (millions of words); NaN where a text did not
    fit into the model, as officially."""
    items = {item.id: item for item in suite.items}
    for prediction in predictions:
        option, (word, _, number) = items[prediction.id].options[0], prediction.id.rpartition("_")
        context = option.text[: option.span[0]] if option.span else ""
        yield {
            "step": f"chck_{milestone}M",
            "word_count": milestone * 10**6,
            "target_word": word,
            "context_id": int(number),
            "context": context.removesuffix(" "),  # the template's
            "surprisal": float("nan") if "too-long" in prediction.flags else -prediction.scores[0],
        }


def count(answers: Answers, key: str) -> int:
    return len(answers[key]["predictions"]) if key in answers else 0
