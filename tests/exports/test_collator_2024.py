"""The answers of 2024 against its collator, written again: lm-eval's samples in, the rows of the
file out.
"""

from __future__ import annotations

import random
from typing import Any

import leaderboard_runs
import numpy as np
import pytest
from prediction_rows import from_rows

from antlm_bench.exports import leaderboard
from antlm_bench.exports.leaderboard_answers import build_text_answers
from antlm_bench.suites import loader
from antlm_bench.suites.task_types import Suite

PAIRS = [
    ("Katherine can't help herself.", "Katherine can't help himself."),
    ("What did you get?\nI got a chair.", "What did you get?\nI got a teacher."),
    (
        r"A: Where?\nB: There.",
        r"A: Where?\nB: Tomorrow.",
    ),  # the two characters, as data that were escaped twice have
    ("Who sleeps", "who sleeps"),
]
PARTS = [
    part
    for part in leaderboard.load_leaderboard("2024").parts
    if part.answer_format == "continuation"
]
GROUPS = {"blimp": "wh_island", "blimp_supplement": "turn_taking", "ewok": "physical-dynamics"}


def record(part: str, good: str, bad: str) -> dict[str, Any]:
    """A line of the official file."""
    if part == "ewok":
        rows = {"Context1": "Nobody weighs the cork.", "Context2": "Nobody weighs the anchor."}
        kinds = {"ContextType": "direct", "ContextDiff": "antonym", "TargetDiff": "concept swap"}
        return {"Domain": GROUPS[part], "Target1": good, "Target2": bad, **rows, **kinds}
    about = {
        "UID": GROUPS[part],
        "field": "syntax",
        "linguistics_term": "island_effects",
        "pair_id": 0,
    }
    return {"sentence_good": good, "sentence_bad": bad, **about}


def sample(part: str, line: dict[str, Any], scores: tuple[float, float]) -> dict[str, Any]:
    """What lm-eval 2024 logs of it (blimp_filtered, blimp_supplement, ewok_filtered:
    _template_yaml).
    """
    context, choices = line.get("Context1", ""), ("sentence_good", "sentence_bad")
    if part == "ewok":
        choices = ("Target1", "Target2")
    delimiter = " "  # target_delimiter
    arguments = [[context, delimiter + line[choice]] for choice in choices]
    return {"arguments": arguments, "resps": [[[score, False]] for score in scores]}


def collated(subtask: str, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """collect_results.py: zeroshot_harness_parser, then _add_to_dict."""
    made = []
    for number, logged in enumerate(samples):
        best = int(np.argmax([answer[0][0] for answer in logged["resps"]]))
        text = logged["arguments"][best][1].replace("\\n", "\n")
        made.append({"id": f"{subtask}_{number}", "pred": text})
    return made


@pytest.mark.parametrize("part", PARTS, ids=[part.key for part in PARTS])
def test_answers_are_those_of_the_official_collator(part: leaderboard.PartSpec) -> None:
    assert len(PARTS) == len(GROUPS)
    spec, group, rng = (
        leaderboard_runs.TEXT_SUITE_SPECS[part.suite],
        GROUPS[part.key],
        random.Random(part.key),
    )
    lines = [record(part.key, *pair) for pair in PAIRS * 8]
    scores = [(-rng.random(), -rng.random()) for _ in lines] + [(-1.0, -1.0)] * len(PAIRS)
    lines += lines[: len(PAIRS)]
    made = loader.build_items(spec, [(f"{group}.jsonl", "here", list(enumerate(lines, 1)))])
    predictions = [
        leaderboard_runs.make_prediction(item, scores=pair)
        for item, pair in zip(made, scores, strict=True)
    ]
    suite = Suite(spec.name, "1", "", "", spec.metric, spec.groups, spec.macro, tuple(made), "d")
    answers, _ = build_text_answers(
        part,
        from_rows(predictions),
        suite,
        leaderboard_runs.make_cell(spec.name, []),
        leaderboard.load_leaderboard("2024").tie_rule,
    )
    samples = [sample(part.key, line, pair) for line, pair in zip(lines, scores, strict=True)]
    assert answers == {group: {"predictions": collated(group, samples)}}
    texts = {row["pred"] for row in answers[group]["predictions"]}
    assert " A: Where?\nB: There." in texts and len(texts) == 2 * len(PAIRS)
