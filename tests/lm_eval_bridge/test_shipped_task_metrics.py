"""The metric code that lm-eval ships: functions and aggregations, on documents made up in their
form, offline.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from antlm_bench.errors import DataError
from antlm_bench.lm_eval_bridge.shims import install_shims
from antlm_bench.lm_eval_bridge.task_metrics import (
    LENGTH_EXTRACTORS,
    MISSING_VALUE,
    DocumentMetrics,
    find_mean_metrics,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # the harness's own
BEST = [
    (-1.0, True),
    (-2.0, False),
    (-3.0, False),
    (-4.0, False),
]  # the first option is the model's
BBQ = {
    "context_condition": "ambig",
    "label": 0,
    "question_type": "pro-stereo",
    "question_polarity": "neg",
    "stereotyped_groups": ["old"],
    "answer_info": {"ans0": ["A", "old"], "ans1": ["B", "young"], "ans2": ["C", "unknown"]},
}


def shipped(place):
    """A task's configuration as the harness reads it, functions and all; no data."""
    import lm_eval.tasks
    from lm_eval.api.registry import get_aggregation
    from lm_eval.tasks._yaml_loader import load_yaml

    install_shims()
    config = load_yaml(Path(lm_eval.tasks.__file__).parent / place, resolve_func=True)
    listed = {one["metric"]: one.get("aggregation", one["metric"]) for one in config["metric_list"]}
    found = {
        name: get_aggregation(how) if isinstance(how, str) else how for name, how in listed.items()
    }
    return SimpleNamespace(process=config["process_results"], aggregations=found)


def said(place, document, answers):
    task = shipped(place)
    readings = find_mean_metrics(task.aggregations)
    return dict(
        zip(
            readings,
            DocumentMetrics(document, task.process, readings, place).compute(answers).values,
            strict=True,
        )
    )


MASS = math.exp(-1) / (math.exp(-1) + math.exp(-2))


@pytest.mark.parametrize(
    ("place", "document", "answers", "wanted"),
    [
        ("crows_pairs/crows_pairs_english.yaml", {}, BEST[:2],
         {"likelihood_diff": 1.0, "pct_stereotype": 1.0}),
        (
            "simple_cooccurrence_bias/simple_cooccurrence_bias.yaml",
            {},
            BEST,
            {"likelihood_diff": 2.0, "pct_male_preferred": 0.0},
        ),
        # r@1 is no accuracy there: 0.4.13 looks for the largest of log-probabilities and first
        # choices together
        ("mutual/mutual.yaml", {"answers": "B"}, BEST, {"r@1": 1.0, "r@2": 1.0, "mrr": 0.5}),
        ("agieval/aqua-rat.yaml", {"gold": [0, 2], "choices": ["a", "b", "c", "d"]}, BEST,
         {"acc": 1.0, "acc_norm": 1.0}),
        ("super_glue/record/default.yaml",
         {"entities": ["Old Cat", "Dog"], "answers": ["Cat"]}, BEST[:2],
         {"f1": 2 / 3, "em": 0.0}),
        ("esbbq/esbbq_age.yaml", BBQ, BEST, {"acc_ambig": 1.0, "acc_disambig": MISSING_VALUE}),
        ("cabbq/cabbq_age.yaml", {**BBQ, "context_condition": "disambig"}, BEST,
         {"acc_ambig": MISSING_VALUE, "acc_disambig": 1.0}),
        ("truthfulqa/truthfulqa_mc2.yaml", {"mc2_targets": {"labels": [1, 0]}}, BEST[:2],
         {"acc": MASS}),
    ],
)  # fmt: skip
def test_shipped_metric_code_gives_values_that_have_a_mean(place, document, answers, wanted):
    if place.startswith("truthfulqa"):
        pytest.importorskip("rouge_score")
        pytest.importorskip("sacrebleu")
    assert said(place, document, answers) == pytest.approx(wanted, nan_ok=True)


def test_bbq_has_its_accuracies_and_no_bias_scores():
    task = shipped("bbq/bbq_multiple_choice.yaml")
    assert list(find_mean_metrics(task.aggregations)) == ["acc", "accuracy_amb", "accuracy_disamb"]


def test_discrim_eval_s_regression_is_no_mean():
    pytest.importorskip("pandas")
    assert find_mean_metrics(shipped("discrim_eval/discrim_eval_explicit.yaml").aggregations) == {}


@pytest.mark.parametrize(
    ("place", "text"), [("wikitext/wikitext.yaml", "page"), ("c4/c4.yaml", "text")]
)
def test_documents_are_as_long_as_their_task_counts(place, text):
    case = DocumentMetrics(
        {text: "a café\n @-@ b"}, shipped(place).process, LENGTH_EXTRACTORS, place
    )
    assert case.compute([-5.0]) == ((14.0, 4.0), ())


def test_a_failing_shipped_metric_is_an_error_with_location():
    place = "simple_cooccurrence_bias/simple_cooccurrence_bias.yaml"
    with pytest.raises(DataError, match="math domain error") as caught:
        said(place, {}, [(-1e4, False)] * 4)
    assert caught.value.location == place
