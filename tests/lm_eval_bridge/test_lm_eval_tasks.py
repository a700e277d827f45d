"""Tasks of lm-evaluation-harness as suites: their own prompts as items, and lm-eval's own numbers
from our engine.
"""

from __future__ import annotations

import json
import random
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from lm_eval_reference import evaluate_tasks, task_ref
from prediction_rows import read_rows

from antlm_bench import runs
from antlm_bench.cli.app import run as cli
from antlm_bench.cli.shared_options import split_names
from antlm_bench.commands.score import score
from antlm_bench.errors import DataError, UsageError
from antlm_bench.lm_eval_bridge import documents, tasks
from antlm_bench.suites.loader import list_suite_refs, load_suite
from antlm_bench.types import Option

DOCS = [{"q": "a", "choices": ["b", "c"], "gold": 0}]

pytestmark = pytest.mark.filterwarnings("ignore")  # the harness's own


def test_a_document_is_an_item_with_the_continuation_as_span(make_task):
    suite = load_suite(task_ref(make_task("toy_a")))
    assert (suite.name, suite.version, suite.metric, suite.groups) == (
        "lm-eval.toy_a",
        "1.0",
        "accuracy",
        (),
    )
    first = suite.items[0]
    assert first.id == "toy_a_0" and first.gold == 0 and first.labels == {}
    assert first.options == (
        Option("the cat sees the dog", (7, 20), 12),
        Option("the cat see the dog", (7, 19), 11),
    )


@pytest.mark.parametrize(
    ("context", "continuation", "text", "span"),
    [
        ("a b", " c", "a b c", (3, 5)),
        ("a b ", "c", "a b c", (3, 5)),
        ("a b\n", "c", "a b\nc", (3, 5)),
        ("a b \n", " c", "a b \n c", (3, 7)),
        ("", "c d", "c d", None),
        ("  ", "c d", "  c d", None),
        ("ü☕ ", "ß", "ü☕ ß", (2, 4)),
    ],
)
def test_white_space_after_a_context_is_scored(context, continuation, text, span):
    assert documents.request_to_option(context, continuation) == Option(text, span)


def test_shots_are_those_that_lm_eval_draws(make_task):
    from lm_eval.tasks import TaskManager

    file = make_task("toy_shots", num_fewshot=2, fewshot_split="test")
    task = TaskManager(include_defaults=False).load(str(file))["tasks"]["toy_shots"]
    task.set_fewshot_seed(seed=1234)
    task.build_all_requests(rank=0, world_size=1)
    theirs = [request.args for request in task.instances]
    suite = load_suite(task_ref(file))
    ours = [option for item in suite.items for option in item.options]
    assert [option.text for option in ours] == [
        context + continuation for context, continuation in theirs
    ]
    assert all(option.text.count("\n\n") >= 2 for option in ours)
    assert "toy_shots: 2 shots" in suite.notes


def test_the_caller_s_random_numbers_are_his_own(make_task):
    random.seed(7), np.random.seed(7)
    wanted = random.Random(7).random(), np.random.RandomState(7).rand()
    load_suite(task_ref(make_task("toy_seed", num_fewshot=1, fewshot_split="test")))
    assert (random.random(), np.random.rand()) == wanted


def group_of(folder, make_task, weigh):
    make_task("toy_g1")
    make_task("toy_g2", docs=[{"q": "no", "choices": ["boy sees", "boys sees"], "gold": 0}])
    file = folder / "toy_group.yaml"
    mean = {"metric": "acc", "aggregation": "mean", "weight_by_size": weigh}
    config = {"group": "toy_group", "task": ["toy_g1", "toy_g2"], "aggregate_metric_list": [mean]}
    file.write_text(yaml.safe_dump(config))
    return file


@pytest.mark.parametrize(("weigh", "macro"), [(True, ()), (False, ("task",))])
def test_a_group_is_one_suite_averaged_as_it_says(make_task, tmp_path, weigh, macro):
    suite = load_suite(task_ref(group_of(tmp_path, make_task, weigh)))
    assert (suite.name, suite.groups, suite.macro) == ("lm-eval.toy_group", ("task",), macro)
    assert [item.labels["task"] for item in suite.items] == ["toy_g1"] * 5 + ["toy_g2"]


def test_a_limit_counts_per_task(make_task, tmp_path):
    suite = load_suite(task_ref(group_of(tmp_path, make_task, False)), limit=2)
    assert [item.id for item in suite.items] == ["toy_g1_0", "toy_g1_1", "toy_g2_0"]
    assert "limit: the first 2 of each task" in suite.notes


def test_a_digest_knows_texts_answers_and_the_version(make_task):
    docs = [{"q": "a", "choices": ["b", "c"], "gold": 0}]
    changed = [{"q": "a", "choices": ["b", "d"], "gold": 0}]
    answered = [{"q": "a", "choices": ["b", "c"], "gold": 1}]
    made = [make_task("t0", docs), make_task("t0b", changed), make_task("t0c", answered)]
    digests = [load_suite(task_ref(file)).digest for file in made]
    again = load_suite(task_ref(make_task("t0", docs))).digest
    newer = load_suite(task_ref(make_task("t0", docs, metadata={"version": 2.0}))).digest
    assert again == digests[0] and len({*digests, newer}) == 4


def test_a_task_s_name_leads_no_file_astray(make_task):
    file = make_task("toy_name")
    file.write_text(file.read_text().replace("task: toy_name", "task: ../../toy name"))
    assert load_suite(task_ref(file)).name == "lm-eval...-..-toy-name"


def test_a_file_without_a_task_says_so(tmp_path):
    file = tmp_path / "none.yaml"
    file.write_text("dataset_path: json\n")
    with pytest.raises(DataError, match="not a task or group"):
        load_suite(task_ref(file))
    file.write_text("task: [")
    with pytest.raises(DataError, match="not a task or group"):
        load_suite(task_ref(file))


@pytest.mark.parametrize(
    "kind", ["generate_until", None]
)  # what a configuration means that does not say it
def test_generation_is_refused_before_data_are_looked_for(make_task, tmp_path, kind):
    absent = {"data_files": {"test": "absent.jsonl"}}
    file = make_task(
        "toy_other", output_type=kind, metric_list=None, doc_to_choice=None, dataset_kwargs=absent
    )
    group = tmp_path / "toy_others.yaml"
    group.write_text(yaml.safe_dump({"group": "toy_others", "task": ["toy_other"]}))
    for each in (file, group):
        with pytest.raises(UsageError, match=f"{each.stem!r} needs generated text") as caught:
            load_suite(task_ref(each))
        assert f"lm_eval run --model hf --tasks {each.stem}" in caught.value.hint
    group.write_text(
        yaml.safe_dump(
            {"group": "toy_others", "task": ["toy_other"], "output_type": "loglikelihood"}
        )
    )
    with pytest.raises(DataError, match="cannot build"):  # the group's word counts: no generation
        load_suite(task_ref(group))


def test_a_misspelt_name_gets_a_suggestion_at_once(monkeypatch):
    monkeypatch.setattr(
        tasks, "_builtin_index", lambda: SimpleNamespace(all_tasks=["blimp", "hellaswag"])
    )
    with pytest.raises(UsageError, match="hellaswagg") as caught:
        list_suite_refs("lm-eval:hellaswagg")
    assert "did you mean 'hellaswag'?" in caught.value.hint
    assert list_suite_refs("lm-eval:blimp,hellaswag") == ["lm-eval:blimp", "lm-eval:hellaswag"]
    with pytest.raises(UsageError, match="several suites"):
        load_suite("lm-eval:blimp,hellaswag")
    with pytest.raises(UsageError, match="no task"):
        list_suite_refs("lm-eval:")
    with pytest.raises(UsageError, match="no such file"):
        list_suite_refs("lm-eval:absent/task.yaml")


def test_a_comma_belongs_to_the_tasks_of_lm_eval():
    assert split_names(["nano,lm-eval:a", "lm-eval:a,b", "c,d"]) == [
        "nano",
        "lm-eval:a",
        "lm-eval:a,b",
        "c",
        "d",
    ]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"docs": [*DOCS, {"q": "a", "choices": ["b", "c"], "gold": 2}]}, "none of its 2 options"),
        ({"docs": [*DOCS, {"q": "a", "choices": ["b", "c"], "gold": -1}]}, "none of its 2 options"),
        ({"docs": [*DOCS, {"q": "a", "choices": ["b\0", "c"], "gold": 0}]}, "NUL"),
        (
            {"dataset_kwargs": {"data_files": {"test": "absent.jsonl"}}},
            "lm-eval cannot build the task",
        ),
        ({"doc_to_text": "{{q"}, "lm-eval cannot build the task"),
    ],
)
def test_bad_documents_are_named_with_their_place(make_task, changes, says):
    file = make_task("toy_bad", **changes)
    with pytest.raises(DataError, match=says) as caught:
        load_suite(task_ref(file))
    assert "toy_bad" in caught.value.location


@pytest.mark.long
@pytest.mark.parametrize(("adds", "bos"), [(True, "auto"), (False, "tokenizer")])
def test_causal_scores_are_lm_eval_s_and_so_is_acc(make_checkpoint, make_task, tmp_path, adds, bos):
    folder, file = make_checkpoint("causal", adds=adds), make_task("toy_parity")
    (run,) = score(
        folder, task_ref(file), out=tmp_path / "run", device="cpu", compat="lm-eval", bos=bos
    )
    results, scores = evaluate_tasks([file], folder)
    (cell,) = run.cells
    found = {p.id: list(p.scores) for p in read_rows(run.path, cell)}
    assert found.keys() == scores.keys()
    for name, values in scores.items():
        assert found[name] == pytest.approx(values, abs=1e-4)
    assert cell.summary.headline.value == pytest.approx(results["toy_parity"]["acc,none"])


@pytest.mark.long
def test_sentences_are_scored_after_lm_eval_s_delimiter(make_checkpoint, make_task, tmp_path):
    """As its BLiMP does, with a tokenizer that puts no space before a text: "The" and " The" are
    other tokens.
    """
    folder = shutil.copytree(make_checkpoint("causal", adds=False), tmp_path / "glued")
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["pre_tokenizer"]["add_prefix_space"] = False
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    docs = [
        {"good": f"{d} {noun} sees {them}", "bad": f"{d} {noun} see {them}"}
        for d in ("the", "every")
        for noun, them in (("boy", "himself"), ("girl", "herself near a house"))
    ]
    file = make_task(
        "toy_sentences", docs, doc_to_text="", doc_to_choice="{{[good, bad]}}", doc_to_target=0
    )
    pairs = tmp_path / "toy_sentences.csv"
    pairs.write_text(
        "good,bad\n" + "".join(f"{doc['good']},{doc['bad']}\n" for doc in docs), encoding="utf-8"
    )
    scores = evaluate_tasks([file], folder)[1]
    found = {}
    for name, suite, compat in (
        ("theirs", str(pairs), "lm-eval"),
        ("ours", str(pairs), None),
        ("task", task_ref(file), None),
    ):
        (run,) = score(folder, suite, out=tmp_path / name, device="cpu", compat=compat)
        found[name] = {p.id: p.scores for p in read_rows(run.path, run.cells[0])}
    theirs = {name: pytest.approx(tuple(values), abs=1e-4) for name, values in scores.items()}
    assert found["theirs"] == found["task"] == theirs
    assert not any(values == theirs[name] for name, values in found["ours"].items())


@pytest.mark.long
@pytest.mark.parametrize("delimiter", [" ", "\n\n"])
def test_the_view_per_character_is_lm_eval_s_acc_norm(
    make_checkpoint, make_task, tmp_path, delimiter
):
    """Choices of one to five words: whether the delimiter counts decides some of them."""
    drawn, words = (
        random.Random(0),
        ("a", "the", "boys", "girl", "sees", "never", "ever", "old", "house", "himself"),
    )
    choices = [
        [" ".join(drawn.choices(words, k=drawn.randint(1, 5))) for _ in range(4)] for _ in range(60)
    ]
    docs = [{"q": "the dog", "choices": four, "gold": drawn.randrange(4)} for four in choices]
    both = [
        {"metric": name, "aggregation": "mean", "higher_is_better": True}
        for name in ("acc", "acc_norm")
    ]
    file = make_task("toy_norm", docs, metric_list=both, target_delimiter=delimiter)
    folder = make_checkpoint("causal", adds=True)
    (run,) = score(folder, task_ref(file), out=tmp_path / "run", device="cpu", compat="lm-eval")
    found = read_rows(run.path, run.cells[0])
    assert [p.characters for p in found] == [tuple(map(len, four)) for four in choices]
    results, scores = evaluate_tasks([file], folder)
    view = run.cells[0].summary.views["per-character"].value
    assert view == pytest.approx(results["toy_norm"]["acc_norm,none"])
    assert run.cells[0].summary.headline.value == pytest.approx(results["toy_norm"]["acc,none"])
    theirs = [(np.array(scores[p.id]), np.array(p.characters)) for p in found]
    for other in (
        [s for s, _ in theirs],
        [s / (n + len(delimiter)) for s, n in theirs],
    ):  # what it is not
        assert (
            sum(np.argmax(s / n) != np.argmax(o) for (s, n), o in zip(theirs, other, strict=True))
            >= 3
        )


ALONE = {"output_type": "loglikelihood", "doc_to_choice": None, "doc_to_target": "{{end}}"}
ENDS = [
    {"q": "the cat", "end": "sees the dog"},
    {"q": "no", "end": "boys see a dog"},
    {"q": "the boys near", "end": "the house see"},
]


@pytest.mark.long
def test_surprisal_is_the_logarithm_of_lm_eval_s_perplexity(make_checkpoint, make_task, tmp_path):
    """lambada's form."""
    both = [
        {"metric": "perplexity", "aggregation": "perplexity"},
        {"metric": "acc", "aggregation": "mean"},
    ]
    file, folder = (
        make_task("toy_alone", ENDS, metric_list=both, **ALONE),
        make_checkpoint("causal", adds=True),
    )
    (run,) = score(folder, task_ref(file), out=tmp_path / "run", device="cpu", compat="lm-eval")
    results, scores = evaluate_tasks([file], folder)
    (cell,) = run.cells
    assert cell.summary.metric == "surprisal" and cell.summary.headline.n == 3
    assert {p.id: list(p.scores) for p in read_rows(run.path, cell)} == {
        name: pytest.approx(values, abs=1e-4) for name, values in scores.items()
    }
    assert np.exp(cell.summary.headline.value) == pytest.approx(
        results["toy_alone"]["perplexity,none"], rel=1e-4
    )


def test_choices_and_single_continuations_have_no_common_number(make_task, tmp_path):
    make_task("toy_one", DOCS)
    make_task("toy_two", ENDS, **ALONE)
    (tmp_path / "toy_mixed.yaml").write_text(
        yaml.safe_dump({"group": "toy_mixed", "task": ["toy_one", "toy_two"]})
    )
    with pytest.raises(UsageError, match="no common metric"):
        load_suite(task_ref(tmp_path / "toy_mixed.yaml"))


@pytest.mark.long
@pytest.mark.parametrize("weigh", [True, False])
def test_a_group_has_lm_eval_s_own_mean(make_checkpoint, make_task, tmp_path, weigh):
    folder, file = make_checkpoint("causal", adds=True), group_of(tmp_path, make_task, weigh)
    (run,) = score(folder, task_ref(file), out=tmp_path / "run", device="cpu", compat="lm-eval")
    results, _ = evaluate_tasks([file], folder)
    assert run.cells[0].summary.headline.value == pytest.approx(results["toy_group"]["acc,none"])


@pytest.mark.long
def test_contexts_may_differ_and_the_continuation_be_one(make_checkpoint, make_task, tmp_path):
    """Winogrande's form: the options are contexts, scored by what follows."""
    docs = [
        {"opts": ["the cat", "the cats"], "end": "see a dog", "gold": 1},
        {"opts": ["no boy", "no old boys"], "end": "sleeps", "gold": 0},
    ]
    changes = {"doc_to_text": "gold", "doc_to_choice": "{{opts}}", "doc_to_target": "{{end}}"}
    file, folder = make_task("toy_contexts", docs, **changes), make_checkpoint("causal", adds=True)
    (run,) = score(folder, task_ref(file), out=tmp_path / "run", device="cpu", compat="lm-eval")
    results, scores = evaluate_tasks([file], folder)
    found = read_rows(run.path, run.cells[0])
    assert [p.gold for p in found] == [1, 0]
    assert [p.characters for p in found] == [(7, 8), (6, 11)]  # of the choices, as acc_norm has it
    assert all(list(p.scores) == pytest.approx(scores[p.id], abs=1e-4) for p in found)
    assert run.cells[0].summary.headline.value == pytest.approx(results["toy_contexts"]["acc,none"])


def test_what_is_asked_for_mutual_information_alone_is_no_option(make_task):
    metrics = [{"metric": "acc_mutual_info", "aggregation": "mean", "higher_is_better": True}]
    suite = load_suite(task_ref(make_task("toy_mutual", DOCS, metric_list=metrics)))
    assert suite.items[0].options == (Option("a b", (1, 3), 1), Option("a c", (1, 3), 1))
    assert "toy_mutual: acc_mutual_info, computed by the task's own code" in suite.notes


def test_a_group_with_different_first_metrics_is_choices(make_task, tmp_path):
    """As those of glue do."""
    make_task("toy_acc", DOCS)
    make_task("toy_mcc", DOCS, metric_list=[{"metric": "mcc"}])
    file = tmp_path / "toy_glue.yaml"
    file.write_text(yaml.safe_dump({"group": "toy_glue", "task": ["toy_acc", "toy_mcc"]}))
    suite = load_suite(task_ref(file))
    assert suite.metric == "accuracy"
    assert "toy_mcc: lm-eval reports mcc; this is the accuracy of the same choices" in suite.notes


def test_groups_within_a_group_are_labels_too(make_task, tmp_path):
    for name in ("one", "two", "three"):
        make_task(f"toy_{name}", DOCS)
    inner = {"group": "toy_inner", "task": ["toy_one", "toy_two"]}
    (tmp_path / "toy_inner.yaml").write_text(yaml.safe_dump(inner))
    (tmp_path / "toy_outer.yaml").write_text(
        yaml.safe_dump({"group": "toy_outer", "task": ["toy_inner", "toy_three"]})
    )
    suite = load_suite(task_ref(tmp_path / "toy_outer.yaml"))
    assert suite.groups == ("group", "task") and suite.macro == ("task",)
    assert [dict(item.labels) for item in suite.items] == [
        {"group": "toy_inner", "task": "toy_one"},
        {"group": "toy_inner", "task": "toy_two"},
        {"group": "toy_outer", "task": "toy_three"},
    ]


@pytest.mark.long
def test_masked_and_hybrid_methods_score_the_same_tasks(make_checkpoint, make_task, tmp_path):
    """A masked model on a task of the harness, by a plain loop over the definition."""
    import torch
    import transformers

    folder, one, two = make_checkpoint("masked"), make_task("toy_m1"), make_task("toy_m2")
    out = tmp_path / "run"
    argv = [
        "score",
        "--model",
        str(folder),
        "--suite",
        f"lm-eval:{one},{two}",
        "--method",
        "mlm,mntp",
    ]
    assert cli([*argv, "--out", str(out), "--device", "cpu"]) == 0
    run = runs.open_run(out)
    cells = {(cell.suite, cell.method): cell for cell in run.cells}
    assert set(cells) == {
        (f"lm-eval.{name}", method) for name in ("toy_m1", "toy_m2") for method in ("mlm", "mntp")
    }
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text, start = "the cat sees the dog", len("the cat")
    coded = tokenizer(text, return_offsets_mapping=True)
    total = 0.0
    for at, (token, (_, end)) in enumerate(
        zip(coded["input_ids"], coded["offset_mapping"], strict=True)
    ):
        if end > start:
            ids = torch.tensor([coded["input_ids"]])
            ids[0, at] = tokenizer.mask_token_id
            with torch.inference_mode():
                total += model(input_ids=ids).logits[0, at].log_softmax(-1)[token].item()
    assert read_rows(out, cells["lm-eval.toy_m1", "mlm"])[0].scores[0] == pytest.approx(
        total, abs=1e-4
    )


@pytest.mark.long
def test_fused_scores_are_the_sum_of_both_ways(make_checkpoint, make_task, tmp_path):
    folder, file = make_checkpoint("causal"), make_task("toy_fused")
    methods = ("causal", "mntp", "fused")
    (run,) = score(folder, task_ref(file), methods=methods, out=tmp_path / "run", device="cpu")
    causal, mntp, fused = (
        np.concatenate([p.scores for p in read_rows(run.path, cell)])
        for name in methods
        for cell in run.cells
        if cell.method == name
    )
    assert np.abs(causal + mntp - fused).max() < 1e-4


@pytest.mark.long
def test_a_finished_task_is_not_scored_twice_and_holds_no_text(
    make_checkpoint, make_task, tmp_path
):
    folder, file, out = make_checkpoint("causal"), make_task("toy_again"), tmp_path / "run"
    (first,) = score(folder, task_ref(file), out=out, device="cpu")
    (second,) = score(folder, task_ref(file), out=out, device="cpu")
    assert (
        first.cells[0].key == second.cells[0].key
        and first.cells[0].digest == second.cells[0].digest
    )
    settings = json.dumps(dict(first.cells[0].settings))
    assert "the cat" not in settings and "lm-eval.toy_again" in settings
