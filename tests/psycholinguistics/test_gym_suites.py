"""A SyntaxGym suite from its JSON to its accuracy, against values computed by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from lookup_model import LookupModel
from prediction_rows import from_rows, rows_per_method

from antlm_bench.errors import DataError, MethodNotSupported
from antlm_bench.metrics import summarize
from antlm_bench.scoring.methods import METHODS
from antlm_bench.scoring.syntaxgym import predict
from antlm_bench.suites import loader as suites
from antlm_bench.suites import syntaxgym

BIT = math.log(2)
# Surprisals in bits: the 1, cat 2, cats 3, sleeps 4, sleep 6, . 1
MODEL = {
    w: -b * BIT
    for w, b in {"the": 1, "cat": 2, "cats": 3, "sleeps": 4, "sleep": 6, ".": 1, "so": 2}.items()
}


def make_condition(name: str, *contents: str) -> dict:
    numbered = [{"region_number": n, "content": c} for n, c in enumerate(contents, start=1)]
    return {"condition_name": name, "regions": numbered}


def make_suite(**changed) -> dict:
    formulas = (
        "(3;%match%) < (3;%mismatch%)",
        "[(1;%match%) + (2;%match%)] > (1;%mismatch%) & (*;%match%) = 8",
    )
    return {
        "meta": {"name": "number toy", "metric": "sum"},
        "region_meta": {"1": "np", "2": "filler", "3": "verb", "4": "end"},
        "predictions": [{"type": "formula", "formula": formula} for formula in formulas],
        "items": [
            {
                "item_number": 1,
                "conditions": [
                    make_condition("match", "the cat", "", "sleeps", "."),
                    make_condition("mismatch", "the cat", "so", "sleep", "."),
                ],
            },
            {
                "item_number": 2,
                "conditions": [
                    make_condition("match", "the cats", "", "sleep", "."),
                    make_condition("mismatch", "the cat", "", "sleeps", "."),
                ],
            },
        ],
        **changed,
    }


def write_suite(folder: Path, content: dict | list) -> Path:
    path = folder / "toy.json"
    path.write_text(json.dumps(content))
    return path


def predict_suite(loaded):
    (predictions_of_method,) = rows_per_method(
        predict(LookupModel(MODEL), loaded.items, [METHODS["causal"]], formulas=loaded.formulas)
    )
    return predictions_of_method


def test_predictions_hold_by_the_margins_computed_by_hand(tmp_path):
    """Item 1: verb 4 < 6, so by 2 bits; 3 + 0 > 3 by 0 and 8 = 8 within .001 + 8e-5: the smaller is
    0. Item 2: 6 < 4 fails by 2; 4 > 3 by 1, but 1 + 3 + 6 + 1 = 11 is not 8.
    """
    loaded = suites.load_suite(str(write_suite(tmp_path, make_suite())))
    predictions = predict_suite(loaded)
    assert [p.id for p in predictions] == ["1.1", "1.2", "2.1", "2.2"]
    assert [p.scores[0] / BIT for p in predictions] == pytest.approx(
        [2, 0, -2, 0.00108 - 3], abs=1e-9
    )
    assert {p.scores[1] for p in predictions} == {0.0}
    assert [p.tokens[0] for p in predictions] == [2, 8, 2, 8]
    levels = {"macro": loaded.macro, "groups": loaded.groups}
    summary = summarize(
        from_rows(predictions),
        suite=loaded.name,
        method="causal",
        metric=loaded.metric,
        ties="strict",
        **levels,
    )
    assert (loaded.name, summary.headline.value) == ("number-toy", 0.25)
    assert [(g.name[:1], g.estimate.value, g.estimate.n) for g in summary.groups] == [
        ("1", 0.5, 2),
        ("2", 0.0, 2),
    ]
    assert 0 < summary.groups[0].estimate.low < 0.5 < summary.groups[0].estimate.high < 1


def test_regions_are_joined_by_a_space_that_belongs_to_the_next(tmp_path):
    gym = syntaxgym.read_suite(write_suite(tmp_path, make_suite()))
    first = gym.sentences[0][0]
    assert first.text == "the cat sleeps ."
    assert [first.text[slice(*span)] for span in first.regions.values()] == [
        "the cat",
        "",
        " sleeps",
        " .",
    ]


def test_a_limit_and_a_digest_are_those_of_any_suite(tmp_path):
    path = write_suite(tmp_path, make_suite())
    whole, limited = suites.load_suite(str(path)), suites.load_suite(str(path), limit=1)
    assert [i.id for i in limited.items] == ["1.1", "1.2"]
    assert suites.list_suite_refs(str(path)) == [str(path)]
    changed = make_suite()
    changed["predictions"][0]["formula"] = "(3;%match%) > (3;%mismatch%)"
    assert suites.load_suite(str(write_suite(tmp_path, changed))).digest != whole.digest


def test_a_region_that_cannot_be_scored_is_an_error(tmp_path):
    content = make_suite(predictions=[{"formula": "(1;%match%) > 0"}])
    loaded = suites.load_suite(str(write_suite(tmp_path, content)))
    with pytest.raises(DataError, match="region 1 of 'match' cannot be scored"):
        rows_per_method(
            predict(
                LookupModel(MODEL, bos=False),
                loaded.items,
                [METHODS["causal"]],
                formulas=loaded.formulas,
            )
        )


def test_a_product_of_two_predictions_has_no_surprisal(tmp_path):
    loaded = suites.load_suite(str(write_suite(tmp_path, make_suite())))
    with pytest.raises(MethodNotSupported, match="product of two predictions"):
        rows_per_method(
            predict(LookupModel(MODEL), loaded.items, [METHODS["fused"]], formulas=loaded.formulas)
        )


def test_a_sentence_that_does_not_fit_is_flagged_and_wrong(tmp_path):
    content = make_suite()
    content["items"][0]["conditions"][0]["regions"][0]["content"] = " ".join(["the"] * 9)
    predictions = predict_suite(suites.load_suite(str(write_suite(tmp_path, content))))
    assert [p.flags for p in predictions] == [("too-long",), ("too-long",), (), ()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"items": []}, "0 items"),
        ({"items": None}, "the list `items` is missing"),
        ({"predictions": None}, "the list `predictions` is missing"),
        ({"predictions": []}, "the list `predictions` is empty"),
        ({"predictions": [{"type": "formula"}]}, "predictions[0]: `formula` is missing"),
        (
            {"predictions": ["(1;%match%) >"]},
            "predictions[0]: invalid formula: '(1;%match%) >': expected a region like",
        ),
        ({"predictions": ["(" * 5000]}, "brackets are nested too deeply"),
        (
            {"predictions": ["(9;%match%) > 1"]},
            "item 1, prediction 1: there is no region 9 in the condition 'match'",
        ),
        (
            {"predictions": ["(1;%mach%) > 1"]},
            "there is no condition 'mach'\n  hint: did you mean 'match'?",
        ),
        ({"items": [{"conditions": []}]}, "items[0]: the list `conditions` is empty"),
        (
            {"items": [{"conditions": [make_condition("a", "x"), make_condition("a", "x")]}]},
            "two conditions are called 'a'",
        ),
        ({"items": [{"conditions": [make_condition("a", " ", "")]}]}, "the text is empty"),
        (
            {"items": [{"conditions": [{"condition_name": "a", "regions": ["x"]}]}]},
            "a region needs `region_number`",
        ),
        ({"items": make_suite()["items"][:1] * 2}, "two items have the `item_number` 1"),
    ],
)
def test_errors_in_a_suite_name_the_location(tmp_path, change, message):
    path = write_suite(tmp_path, make_suite(**change))
    with pytest.raises(DataError) as caught:
        suites.load_suite(str(path))
    assert message in str(caught.value) and str(path) in str(caught.value)
