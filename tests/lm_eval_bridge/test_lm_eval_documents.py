"""Tasks of lm-eval whose number is no mean over documents: its own numbers from our engine,
compared and gated.
"""

from __future__ import annotations

import itertools
import json
import random
import shutil
from pathlib import Path

import pytest
import yaml
from lm_eval_reference import evaluate_tasks, task_ref
from prediction_rows import read_rows
from task_runs import run_every_command, score_task

from antlm_bench import runs
from antlm_bench.lm_eval_bridge.registration import MODEL_NAME, register_model
from antlm_bench.suites.loader import load_suite

pytestmark = pytest.mark.filterwarnings("ignore")  # the harness's own
WORDS = ("the", "boys", "girl", "sees", "ever", "old", "house", "himself", "a", "dog")


def drawn(options, n=48, seed=0):
    """Documents whose answers a model without training spreads over the options."""
    rng = random.Random(seed)
    made = []
    for _ in range(n):
        choices = [" ".join(rng.choices(WORDS, k=rng.randint(1, 2))) for _ in range(options)]
        made.append(
            {
                "q": " ".join(rng.choices(WORDS, k=4)),
                "choices": choices,
                "gold": rng.randrange(options),
            }
        )
    return made


def listed(*metrics):
    return [
        dict(zip(("metric", "aggregation", "higher_is_better"), one, strict=False))
        for one in metrics
    ]


def function(file, *places):
    """The YAML file with `!function` before these values, which plain YAML cannot write."""
    text = file.read_text()
    for place in places:
        text = text.replace(f"aggregation: {place}\n", f"aggregation: !function {place}\n")
        text = text.replace(f"process_results: {place}\n", f"process_results: !function {place}\n")
        text = text.replace(f": {place}\n", f": !function {place}\n")
    file.write_text(text)
    return file


def shipped(folder, *names):
    """Files of lm-eval's own tasks, beside those of a test."""
    import lm_eval.tasks

    for name in names:
        shutil.copy(Path(lm_eval.tasks.__file__).parent / name, folder)


F1S = """def weighted(items):
    from lm_eval.utils import weighted_f1_score
    return weighted_f1_score(items)
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "metrics", "metric"),
    [
        (2, listed(("mcc",), ("acc",)), "whole-score"),  # glue's cola
        (2, listed(("f1",)), "whole-score"),  # qasper
        (2, listed(("acc",), ("f1",), ("mcc",)), "accuracy"),  # glue's mrpc, qqp
        (
            3,
            listed(("acc",), ("f1", "aggregate.cb_multi_fi")),
            "accuracy",
        ),  # super_glue's cb, its own file
        (
            3,
            listed(("f1", "averages.weighted", True), ("acc", "mean", True)),
            "whole-score",
        ),  # 1,013 African tasks
        (3, listed(("acc_norm", "mean", True)), "task-score"),  # leaderboard's bbh
        (3, listed(("exact_match", "mean", True)), "task-score"),  # webqs
        (
            3,
            listed(("brier_score",), ("likelihood", "custom_metrics.loglikelihood_diff")),
            "whole-penalty",
        ),
    ],
)
def test_all_numbers_of_a_task_are_lm_eval_s(
    make_checkpoint, make_task, tmp_path, options, metrics, metric
):
    shipped(tmp_path, "super_glue/cb/aggregate.py", "e2lmc/mmlu_early_training/custom_metrics.py")
    (tmp_path / "averages.py").write_text(F1S)
    own = [one["aggregation"] for one in metrics if "." in one.get("aggregation", "")]
    file = function(make_task("toy_whole", drawn(options), metric_list=metrics), *own)
    folder = make_checkpoint("causal", adds=True)
    _, cell = score_task(folder, file, tmp_path / "run", compat="lm-eval")
    (results, _), summary = evaluate_tasks([file], folder), cell.summary
    names = [one["metric"] for one in metrics]
    found = (
        {**summary.views, "acc": summary.headline} if metric == "accuracy" else dict(summary.views)
    )
    found.setdefault(names[0], summary.headline)
    assert summary.metric == metric
    for name in names:
        assert found[name].value == pytest.approx(results["toy_whole"][f"{name},none"], abs=1e-4), (
            name
        )
        assert (
            found[name].low <= found[name].value <= found[name].high
            and found[name].low < found[name].high
        )
    assert not [note for note in summary.notes if "not computed" in note]


@pytest.mark.long
@pytest.mark.parametrize(
    ("architecture", "method"), [("masked", "mlm"), ("masked", "mntp"), ("causal", "fused")]
)
def test_other_methods_numbers_are_those_of_our_model_in_lm_eval(
    make_checkpoint, make_task, tmp_path, architecture, method
):
    register_model()
    file, folder = (
        make_task("toy_ways", drawn(2), metric_list=listed(("mcc",), ("f1",))),
        make_checkpoint(architecture),
    )
    _, cell = score_task(folder, file, tmp_path / "run", methods=method)
    results, _ = evaluate_tasks([file], folder, model=MODEL_NAME, method=method)
    assert cell.summary.headline.value == pytest.approx(results["toy_ways"]["mcc,none"], abs=1e-4)
    assert cell.summary.views["f1"].value == pytest.approx(results["toy_ways"]["f1,none"], abs=1e-4)


@pytest.mark.long
def test_greedy_accuracy_is_shown_where_it_is_the_only_metric(make_checkpoint, make_task, tmp_path):
    """arithmetic's form; lambada reports perplexity first."""
    changes = {
        "output_type": "loglikelihood",
        "doc_to_choice": None,
        "doc_to_target": " {{choices[0]}}",
    }
    file = make_task("toy_sums", drawn(2), metric_list=listed(("acc", "mean", True)), **changes)
    folder = make_checkpoint("causal", adds=True)
    _, cell = score_task(folder, file, tmp_path / "run")
    results, _ = evaluate_tasks([file], folder)
    assert (cell.summary.metric, cell.summary.headline.n) == ("task-score", 48)
    assert cell.summary.headline.value == pytest.approx(results["toy_sums"]["acc,none"])


@pytest.mark.long
@pytest.mark.parametrize("weigh", [True, False])
def test_a_group_s_f1_is_the_mean_of_its_tasks_own(make_checkpoint, make_task, tmp_path, weigh):
    """afrixnli's form, which weighs by size."""
    for number, n in enumerate((24, 60)):
        make_task(f"toy_f{number}", drawn(2, n, seed=number), metric_list=listed(("f1",), ("acc",)))
    file = tmp_path / "toy_fs.yaml"
    mean = {"metric": "f1", "aggregation": "mean", "weight_by_size": weigh}
    file.write_text(
        yaml.safe_dump(
            {"group": "toy_fs", "task": ["toy_f0", "toy_f1"], "aggregate_metric_list": [mean]}
        )
    )
    folder = make_checkpoint("causal", adds=True)
    _, cell = score_task(folder, file, tmp_path / "run")
    (results, _), summary = evaluate_tasks([file], folder), cell.summary
    assert summary.headline.value == pytest.approx(results["toy_fs"]["f1,none"], abs=1e-4)
    assert {group.name: group.estimate.value for group in summary.groups} == {
        name: pytest.approx(results[name]["f1,none"], abs=1e-9) for name in ("toy_f0", "toy_f1")
    }


BBQ = [
    {
        "context": " ".join(doc["q"].split()[:2]),
        "question": doc["q"],
        "ans0": "the old boys",
        "ans1": "a girl",
        "ans2": "Unknown",
        "answer_info": {
            "ans0": ["old", "old"],
            "ans1": ["young", "nonOld"],
            "ans2": ["unknown", "unknown"],
        },
        "additional_metadata": {"stereotyped_groups": ["old"]},
        "stereotyped_groups": ["old"],
        "question_polarity": ("neg", "nonneg")[number % 2],
        "question_type": ("pro-stereo", "anti-stereo")[number % 3 == 0],
        "context_condition": "ambig" if number % 5 < 2 else "disambig",
        "category": "Age",
        "label": 2 if number % 5 < 2 else number % 2,
    }
    for number, doc in enumerate(drawn(2, 60, seed=3))
]


@pytest.mark.long
@pytest.mark.parametrize("place", ["bbq/bbq_multiple_choice.yaml", "esbbq/esbbq_age.yaml"])
def test_bias_scores_are_lm_eval_s(make_checkpoint, tmp_path, place):
    """The shipped tasks' own files, on documents in their form."""
    shipped(tmp_path, place, f"{Path(place).parent}/utils.py")
    if place.startswith("esbbq"):
        shipped(tmp_path, "esbbq/_esbbq_common_yaml")
    data = tmp_path / "bbq.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in BBQ))
    source = tmp_path / Path(place).name
    kept = [
        line
        for line in source.read_text().splitlines()
        if not line.startswith(("dataset_", "task:", "tag:", "  - social"))
    ]
    file = tmp_path / "toy_bbq.yaml"
    head = ["task: toy_bbq", "dataset_path: json", "dataset_name: null"]
    file.write_text(
        "\n".join([*head, f"dataset_kwargs: {{data_files: {{test: {data}}}}}", *kept]) + "\n"
    )
    source.unlink()
    folder = make_checkpoint("causal", adds=True, max_position_embeddings=256)
    _, cell = score_task(folder, file, tmp_path / "run", compat="lm-eval")
    (results, _), summary = evaluate_tasks([file], folder), cell.summary
    theirs = {
        name.removesuffix(",none"): value
        for name, value in results["toy_bbq"].items()
        if "bias" in name
    }
    wanted = {
        name: value for name, value in theirs.items() if "stderr" not in name and value == value
    }
    assert len(wanted) >= 2
    for name, value in wanted.items():
        assert summary.views[name].value == pytest.approx(value, abs=1e-4), name


@pytest.mark.long
def test_a_regression_over_all_documents_is_a_suite(make_checkpoint, tmp_path):
    """discrim_eval, its own code: one coefficient and no number per document."""
    shipped(tmp_path, "discrim_eval/utils.py")
    with (tmp_path / "utils.py").open(
        "a"
    ) as code:  # one of seven numbers, for each is a regression of its own
        code.write(
            "def one(doc, said):\n"
            '    return {"female_bias": process_results(doc, said)["female_bias"]}\n'
        )
    races, genders = ["white", "black", "Asian"], ["male", "female"]
    docs = [
        {"race": race, "gender": gender, "age": age, "decision_question_id": template}
        | {
            "filled_template": f"the {race} {'girl' if gender == 'female' else 'boys'} "
            f"{age} {WORDS[template]}"
        }
        for template, race, gender, age in itertools.product(range(4), races, genders, (20, 40, 60))
    ]
    data = tmp_path / "discrim.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    config = {
        "task": "toy_discrim",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{filled_template}}",
        "doc_to_target": "yes",
        "doc_to_choice": ["yes", "Yes", "no", "No"],
        "process_results": "utils.one",
        "metric_list": listed(("female_bias", "utils.agg_demographic_bias_regression", False)),
    }
    file = tmp_path / "toy_discrim.yaml"
    file.write_text(yaml.safe_dump(config))
    function(file, "utils.one", "utils.agg_demographic_bias_regression")
    folder = make_checkpoint("causal", adds=True)
    run, cell = score_task(folder, file, tmp_path / "run")
    results, _ = evaluate_tasks([file], folder)
    assert (cell.summary.metric, cell.summary.headline.n) == ("whole-penalty", len(docs))
    assert cell.summary.headline.value == pytest.approx(
        results["toy_discrim"]["female_bias,none"], abs=1e-4
    )
    assert cell.summary.headline.low < cell.summary.headline.value < cell.summary.headline.high
    kept = [json.loads(p.kept[0]) for p in read_rows(run.path, cell)]
    assert [tuple(said[0]) for said in kept] == [
        (doc["race"].lower(), doc["gender"], doc["age"], doc["decision_question_id"])
        for doc in docs
    ]


@pytest.mark.long
def test_record_loads_and_is_scored(make_checkpoint, tmp_path):
    """super_glue's record, whose own import transformers 5 does not answer."""
    shipped(tmp_path, "super_glue/record/util.py", "super_glue/record/default.yaml")
    docs = [
        {
            "passage": f"{doc['q']}\n@highlight\n{doc['choices'][0]}",
            "query": "@placeholder sees the old house",
            "entities": [*doc["choices"], "the old boys"],
            "answers": [f"the {doc['choices'][doc['gold']]}", "boys"],
        }
        for doc in drawn(2, 20)
    ]
    data = tmp_path / "record.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    text = (
        (tmp_path / "default.yaml")
        .read_text()
        .replace("dataset_path: aps/super_glue", "dataset_path: json")
    )
    text = text.replace(
        "dataset_name: record", f"dataset_kwargs: {{data_files: {{validation: {data}}}}}"
    )
    file = tmp_path / "toy_record.yaml"
    file.write_text(
        text.replace("task: record", "task: toy_record").replace("training_split: train\n", "")
    )
    (tmp_path / "default.yaml").unlink()
    folder = make_checkpoint("causal", adds=True)
    _, cell = score_task(folder, file, tmp_path / "run")
    results, _ = evaluate_tasks([file], folder)
    assert cell.summary.headline.value == pytest.approx(results["toy_record"]["f1,none"], abs=1e-4)
    assert cell.summary.views["em"].value == pytest.approx(
        results["toy_record"]["em,none"], abs=1e-4
    )
    assert 0 < cell.summary.views["em"].value < 1


@pytest.mark.long
def test_such_runs_are_compared_gated_reported_and_exported(
    make_checkpoint, make_task, tmp_path, capsys
):
    file = make_task("toy_all", drawn(2), metric_list=listed(("mcc",), ("acc",)))
    folders = [make_checkpoint("causal"), make_checkpoint("causal", architecture="GPT2LMHeadModel")]
    values, found, said, results = run_every_command(folders, file, tmp_path, capsys)
    head = found["headline"]
    assert found["metric"] == "whole-score"
    assert head["low"] < head["value"] < head["high"] and 0 <= head["p"] <= 1
    assert "48 items" in said and "documents better" not in said  # no single one has an mcc
    assert results["results"]["lm-eval.toy_all"]["mcc,none"] == pytest.approx(values[0])
    (samples,) = (tmp_path / "out").rglob("samples_*.jsonl")
    assert "mcc" not in json.loads(samples.read_text().splitlines()[0])


@pytest.mark.long
def test_other_code_of_an_aggregation_is_another_suite(make_task, tmp_path):
    (tmp_path / "averages.py").write_text(F1S)
    file = function(
        make_task("toy_code", drawn(2), metric_list=listed(("f1", "averages.weighted"))),
        "averages.weighted",
    )
    before = load_suite(task_ref(file)).digest
    assert load_suite(task_ref(file)).digest == before
    (tmp_path / "averages.py").write_text(
        F1S.replace("weighted(items):", "weighted(items):  # newly")
    )
    assert load_suite(task_ref(file)).digest != before


@pytest.mark.long
def test_a_killed_run_goes_on_to_the_same_bytes(make_checkpoint, make_task, tmp_path, monkeypatch):
    from antlm_bench.scoring import multiple_choice

    monkeypatch.setattr(
        multiple_choice,
        "iter_chunks",
        lambda items, _: [items[at : at + 20] for at in range(0, len(items), 20)],
    )
    file, folder = (
        make_task("toy_kill", drawn(2), metric_list=listed(("mcc",))),
        make_checkpoint("causal"),
    )
    _, whole = score_task(folder, file, tmp_path / "whole")
    put, count = runs.RunWriter.save_chunk, []

    def killed(self, *args):
        count.append(1)
        if len(count) == 2:
            raise KeyboardInterrupt
        put(self, *args)

    monkeypatch.setattr(runs.RunWriter, "save_chunk", killed)
    with pytest.raises(KeyboardInterrupt):
        score_task(folder, file, tmp_path / "killed")
    _, resumed = score_task(folder, file, tmp_path / "killed")
    assert (resumed.digest, resumed.summary) == (whole.digest, whole.summary)
