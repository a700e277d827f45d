"""The answers of a run in the form of a submission file: chosen texts, scores, surprisals.

Runs store the score of every option, so the answers to items with ties follow the leaderboard's tie
rule, even if the run's own scores were computed by another rule.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from antlm_bench.errors import IncompleteError
from antlm_bench.exports.leaderboard import AnswerFormat, PartSpec, TieRule
from antlm_bench.metrics import ItemKind, MetricSettings, get_metric_spec, load_metric
from antlm_bench.metrics.prediction_table import (
    PredictionTable,
    assign_strata,
    build_table,
    choice_weights,
    gold_indices,
)
from antlm_bench.predictions import Predictions
from antlm_bench.printable import format_count
from antlm_bench.statistics import macro_weights
from antlm_bench.suites.task_types import Suite
from antlm_bench.types import Bools, Cell, Floats, Ints, Item, Option

LeaderboardAnswers = dict[str, dict[str, list[dict[str, Any]]]]
"""Subkey -> {"predictions": rows}."""
MilestoneScores = dict[str, float]
"""Subkey -> score in 0..1."""

# The official code of 2024 (numpy.argmax in collect_results.py) and 2025 (torch.max in
# rank_and_evaluate) takes the first option, which is the correct one in all suites. The code of
# 2026 draws an option, without a seed.
TIE_RULE_DESCRIPTIONS: dict[TieRule, str] = {
    "first": "given to the first option",
    "random": "drawn by the item's id",
}


def require_complete(cell: Cell) -> Cell:
    """Return the cell. Raises IncompleteError if the run's data lacked items of the suite."""
    for note in cell.summary.notes:
        if note.startswith("incomplete"):
            hint = "get all data (antlm-bench data fetch), then score again"
            raise IncompleteError(note, hint=hint)
    return cell


def compute_milestone_scores(
    cell: Cell,
    part: PartSpec,
    tie_rule: TieRule,
    softmax: str,
    load_predictions: Callable[[], Predictions],
) -> MilestoneScores:
    """Return the scores of a fast suite at a milestone: accuracies, Spearman's rho, partial R2.

    Scores are recomputed from the predictions if the official collator would compute others:
    accuracies with ties, and correlations whose probabilities were computed in another precision
    than `softmax`.
    """
    groups, metric = cell.summary.groups, get_metric_spec(cell.summary.metric)
    settings = MetricSettings.of_cell(cell)
    if part.subkeys:
        return {
            part.subkeys[group.name]: group.estimate.value
            for group in groups
            if group.name in part.subkeys
        }
    if metric.tie_rule_matters and cell.summary.headline.flags.get("tie"):
        level = groups[-1].level if groups else ""
        table = build_table(load_predictions(), {level} if level else set(), settings.reduction)
        chosen = choose_options(table, tie_rule, settings.reduction)
        accuracies = compute_group_accuracies(table, chosen, level)
        return {name or part.key: accuracy for name, accuracy in accuracies.items()}
    has_ratings = metric.item_kind is ItemKind.RATING
    if has_ratings and settings.softmax != softmax:
        table = build_table(load_predictions(), set(), settings.reduction)
        correlation = load_metric(metric.name, replace(settings, softmax=softmax))
        return {part.key: correlation.headline(table, ()).estimate.value}
    if has_ratings or not groups:
        return {part.key: cell.summary.headline.value}
    return {group.name: group.estimate.value for group in groups if group.level == groups[-1].level}


def build_text_answers(
    part: PartSpec,
    predictions: Predictions,
    suite: Suite,
    cell: Cell,
    tie_rule: TieRule,
    softmax: str = "float64",
) -> tuple[LeaderboardAnswers, list[str]]:
    """Return the chosen texts by subkey, in the suite's order, and notes about ties and long items.

    An item that is too long for the model is answered with a wrong option. Raises IncompleteError
    for such an item if the file also needs its probability.
    """
    reduction = str(cell.settings.get("reduction", "sum"))
    has_probabilities = part.answer_format == "share"
    levels = set() if has_probabilities else set(suite.macro)
    table = build_table(predictions, levels, reduction)
    num_too_long = int(table.get_flag("too-long").sum())
    if has_probabilities and num_too_long:
        raise IncompleteError(
            f"too long for the model, without a probability: {format_count(num_too_long, 'item')}"
        )
    chosen = choose_options(table, tie_rule, reduction)
    probabilities = None
    if has_probabilities:
        settings = replace(MetricSettings.of_cell(cell), softmax=softmax)
        probabilities = load_metric(cell.summary.metric, settings).per_item(table)
    level = part.group_level or suite.groups[-1]
    items = {item.id: item for item in suite.items}
    answers: LeaderboardAnswers = defaultdict(lambda: {"predictions": []})
    for index, item_id in enumerate(predictions.ids):
        item = items[item_id]
        row: dict[str, Any] = {
            "id": item.id,
            "pred": get_option_text(part.answer_format, item, int(chosen[index])),
        }
        if probabilities is not None:
            row["prob"] = float(probabilities[index])
        answers[item.labels[level]]["predictions"].append(row)
    notes = []
    if num_ties := int(table.get_flag("tie").sum()):
        if has_probabilities:
            description = f"{format_count(num_ties, 'tie')}, {TIE_RULE_DESCRIPTIONS[tie_rule]}; "
            description += "a correlation with ratings does not depend on it"
        else:
            description = describe_ties(table, tie_rule, reduction, suite.macro)
        notes.append(f"{suite.name}: {description}")
    if num_too_long:
        count = format_count(num_too_long, "item")
        notes.append(f"{suite.name}: too long for the model and answered wrong: {count}")
    return dict(answers), notes


def get_option_text(answer_format: AnswerFormat, item: Item, option_index: int) -> str:
    """Return the text of an option as the submission file holds it."""
    option = item.options[option_index]
    if answer_format == "continuation":
        return get_continuation(option)
    if answer_format == "sentence" or option.span is None:
        return option.text
    return option.text[slice(*option.span)]


def get_continuation(option: Option) -> str:
    r"""Return the continuation of the lm-eval request for an option.

    A text without context is requested behind a space, its delimiter. A scored part of a text
    starts with that space already. The collator of 2024 (_add_to_dict) turns the two characters \n
    into a newline.
    """
    continuation = option.text[slice(*option.span)] if option.span else f" {option.text}"
    return continuation.replace("\\n", "\n")


def build_surprisal_rows(predictions: Predictions) -> Iterator[dict[str, Any]]:
    """Yield the surprisals in nats of each word and of the word before it; nan without such a word.

    Raises IncompleteError for words that are too long for the model, because the file has no
    value for them.
    """
    too_long = predictions.has_flag("too-long")
    if too_long.any():
        raise IncompleteError(
            f"too long for the model: {format_count(int(too_long.sum()), 'word')}",
            hint=f"the first is {predictions.ids[int(too_long.argmax())]}",
        )
    # The first option of an item is the word, the second one is the word before it.
    for index, scores in enumerate(predictions.iter_options("scores")):
        previous = -scores[1] if len(scores) > 1 else float("nan")
        yield {"id": index, "pred": -scores[0], "prev_pred": previous}


def build_curve_rows(
    predictions: Predictions, suite: Suite, milestone: int
) -> Iterator[dict[str, Any]]:
    """Yield the surprisal in nats of every word in its contexts at a milestone (millions of words).

    As in the official file, nan stands for a text that is too long for the model.
    """
    items = {item.id: item for item in suite.items}
    surprisals = np.where(predictions.has_flag("too-long"), np.nan, -predictions.first("scores"))
    for item_id, surprisal in zip(predictions.ids, surprisals.tolist(), strict=True):
        option = items[item_id].options[0]
        word, _, context_id = item_id.rpartition("_")
        context = option.text[: option.span[0]] if option.span else ""
        yield {
            "step": f"chck_{milestone}M",
            "word_count": milestone * 10**6,
            "target_word": word,
            "context_id": int(context_id),
            "context": context.removesuffix(" "),  # the space that precedes the word
            "surprisal": surprisal,
        }


# ---- ties


def choose_options(table: PredictionTable, tie_rule: TieRule, reduction: str) -> Ints:
    """Return the index of the chosen option of each item, (n,).

    An item that is too long for the model was not scored; a wrong option is chosen for it.
    """
    chosen = choice_weights(table, tie_rule, reduction).argmax(axis=1)
    # Items with ratings have no wrong option. Any index will do for them.
    wrong = (table.gold == 0).astype(int)
    return np.asarray(np.where(table.get_flag("too-long"), wrong, chosen), np.int32)


def mark_correct(table: PredictionTable, chosen: Ints) -> Bools:
    """Return whether each chosen option, (n,), is correct.

    Official scorers compare texts, so both options are correct if their texts are equal.
    """
    equal_texts = table.get_flag("identical") & (table.valid.sum(axis=1) == 2)
    is_gold = chosen == gold_indices(table)
    return np.asarray((is_gold | equal_texts) & ~table.get_flag("too-long"))


def compute_group_accuracies(table: PredictionTable, chosen: Ints, level: str) -> dict[str, float]:
    """Return the accuracy, 0..1, of each group of a level; if level is "", of all items as ""."""
    correct = mark_correct(table, chosen)
    if not level:
        return {"": float(correct.mean())}
    codes, names = table.levels[level]
    return {name: float(correct[codes == code].mean()) for code, name in enumerate(names)}


def describe_ties(
    table: PredictionTable, tie_rule: TieRule, reduction: str, macro_levels: Sequence[str]
) -> str:
    """Describe the ties of a table: their number, and the score under both tie rules.

    Scores are in percent, averaged over the macro levels. Returns "" if there are no ties.
    """
    ties = table.get_flag("tie")
    if not ties.any():
        return ""
    codes, paths = assign_strata(table, macro_levels)
    weights, sizes = macro_weights(paths), np.bincount(codes, minlength=len(paths))

    def describe_score(rule: TieRule) -> str:
        correct: Floats = mark_correct(table, choose_options(table, rule, reduction)).astype(float)
        score = 100 * float(weights @ (np.bincount(codes, correct, len(paths)) / sizes))
        description = TIE_RULE_DESCRIPTIONS[rule]
        return f"{description}: {int(correct[ties].sum())} right, {score:.2f} in all"

    other_rule: TieRule = "random" if tie_rule == "first" else "first"
    count = format_count(int(ties.sum()), "tie")
    return f"{count}, {describe_score(tie_rule)}; {describe_score(other_rule)}"
