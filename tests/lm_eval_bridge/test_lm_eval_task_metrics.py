"""Tasks of lm-eval that score answers by code of their own, with several right options, or whole
documents: its own numbers from our engine.
"""

from __future__ import annotations

import math
import random
from functools import partial

import numpy as np
import pytest
import yaml
from lm_eval_reference import evaluate_tasks, task_ref
from prediction_rows import assert_columns_declared, read_rows
from task_runs import run_every_command
from task_runs import score_task as scored_by

from antlm_bench.commands.score import score
from antlm_bench.errors import DataError, MethodNotSupported, UsageError
from antlm_bench.lm_eval_bridge.registration import MODEL_NAME, register_model
from antlm_bench.runs import read_predictions
from antlm_bench.statistics import score_interval
from antlm_bench.suites.loader import load_suite

pytestmark = pytest.mark.filterwarnings("ignore")  # the harness's own
CODE = '''
import math
import numpy as np

def mass(doc, results):
    """truthfulqa_mc2's form, crows_pairs' distance, a missing document, and what has no mean."""
    lls = np.array([ll for ll, _ in results])
    probabilities = np.exp(lls) / np.exp(lls).sum()
    said = {"mass": probabilities[doc["gold"]], "gap": abs(lls[0] - lls[1])}
    said["first"] = float(any(first for _, first in results))
    if doc["gold"] == 0:
        said["gap_of_some"] = said["gap"]
    return said | {"nan": float("nan") if doc["gold"] else 1.0}

def paired(doc, results):
    best = int(np.argmax([ll for ll, _ in results]))
    return mass(doc, results) | {"pair": (doc["gold"] == 1, best == 1)}

def single(doc, results):
    ((ll, first),) = results
    return {"miss": float(not first) if len(doc["q"]) > 9 else float("nan")}

def marked(doc, results):
    """esbbq's and bbq's form: shares of the documents with a mark, and of those without."""
    right = int(np.argmax([ll for ll, _ in results]) == doc["gold"])
    mark = len(doc["choices"]) == 2
    of_two = (int(mark and right), int(mark))
    return {"of_two": of_two, "of_more": (right, mark), "odds": (right, mark)}

def share(items):
    right, marks = zip(*items)
    return sum(right) / sum(marks)

def rest(items):
    right, marks = zip(*items)
    return np.array(right)[~np.array(marks, bool)].mean()

def odds(items):
    return sum(a for a, _ in items) / max(1, sum(b for _, b in items)) - 1

def broken(doc, results):
    return {"acc": 1 / (doc["gold"] - 1)}

def lengths(doc, results):
    (ll,) = results
    words, num_bytes = len(doc["q"].split()) + 1, 2 * len(doc["q"].encode())
    return {"word_perplexity": (ll, words), "byte_perplexity": (ll, num_bytes)}
'''


def metrics(*names, better=True):
    return [{"metric": name, "aggregation": "mean", "higher_is_better": better} for name in names]


@pytest.fixture
def make_custom_task(make_task, tmp_path):
    """make_custom_task(name, function, **changes): a task that calls a function of CODE."""

    def make(name, function, **changes):
        (tmp_path / "task_code.py").write_text(CODE)
        file = make_task(name, process_results=f"!task_code.{function}", **changes)
        text = (
            file.read_text()
            .replace("'!task_code.", "!function 'task_code.")
            .replace("!task_code.", "!function task_code.")
        )
        file.write_text(text)
        return file

    return make


scored = partial(scored_by, compat="lm-eval")


@pytest.mark.long
def test_a_task_s_own_code_gives_the_values_of_lm_eval(make_checkpoint, make_custom_task, tmp_path):
    names = ("mass", "gap", "first", "gap_of_some", "nan")
    file = make_custom_task(
        "toy_mass",
        "paired",
        metric_list=[*metrics(*names), {"metric": "pair", "aggregation": "f1"}],
    )
    folder = make_checkpoint("causal", adds=True)
    run, cell = scored(folder, file, tmp_path / "run")
    (results, _), summary = evaluate_tasks([file], folder), cell.summary
    assert summary.metric == "task-score" and summary.headline.n == 5
    assert summary.headline.value == pytest.approx(results["toy_mass"]["mass,none"], abs=1e-4)
    assert summary.headline.low < summary.headline.value < summary.headline.high
    for name in ("gap", "first", "gap_of_some"):
        assert summary.views[name].value == pytest.approx(
            results["toy_mass"][f"{name},none"], abs=1e-4
        )
    assert (summary.views["gap_of_some"].n, summary.views["nan"].n, summary.views["nan"].value) == (
        3,
        3,
        1.0,
    )
    assert "toy_mass: mass, computed by the task's own code" in summary.notes
    assert (summary.views["pair"].value, summary.views["pair"].n) == (
        results["toy_mass"]["pair,none"],
        5,
    )
    assert_columns_declared("lm-eval", read_predictions(run.path, cell))
    found = read_rows(run.path, cell)
    assert [len(p.scores) for p in found] == [2, 3, 2, 2, 2]
    assert all((len(p.judged), len(p.kept)) == (6, 1) for p in found)
    assert [math.isnan(p.judged[3]) for p in found] == [p.gold != 0 for p in found]


@pytest.mark.long
def test_lower_may_be_better_for_single_continuations(make_checkpoint, make_custom_task, tmp_path):
    changes = {
        "doc_to_choice": None,
        "doc_to_target": " {{choices[0]}}",
        "output_type": "loglikelihood",
    }
    listed = [{"metric": "miss", "aggregation": "nanmean", "higher_is_better": False}]
    file = make_custom_task("toy_less", "single", **changes, metric_list=listed)
    folder = make_checkpoint("causal", adds=True)
    _, cell = scored(folder, file, tmp_path / "run")
    results, _ = evaluate_tasks([file], folder)
    assert cell.summary.metric == "task-penalty"
    assert cell.summary.headline.value == pytest.approx(results["toy_less"]["miss,none"])
    assert (
        cell.summary.headline.n == 4
        and "left out: 1 item for which the task has no value" in cell.summary.notes
    )


@pytest.mark.long
@pytest.mark.parametrize("method", ["mlm", "mlm-l2r"])
def test_masked_methods_give_the_values_of_our_model_in_lm_eval(
    make_checkpoint, make_custom_task, tmp_path, method
):
    register_model()
    file, folder = (
        make_custom_task("toy_masked", "mass", metric_list=metrics("mass", "first")),
        make_checkpoint("masked"),
    )
    _, cell = scored(folder, file, tmp_path / "run", methods=method)
    results, _ = evaluate_tasks([file], folder, model=MODEL_NAME, method=method)
    assert cell.summary.headline.value == pytest.approx(
        results["toy_masked"]["mass,none"], abs=1e-4
    )
    assert cell.summary.views["first"].value == pytest.approx(results["toy_masked"]["first,none"])


@pytest.mark.long
def test_several_methods_and_fused_have_task_metric_values(
    make_checkpoint, make_custom_task, tmp_path
):
    file, folder = (
        make_custom_task("toy_fused", "mass", metric_list=metrics("mass", "first")),
        make_checkpoint("causal"),
    )
    names = ("causal", "mntp", "fused")
    (together,) = score(
        folder, task_ref(file), methods=names, out=tmp_path / "together", device="cpu"
    )
    for name, cell in zip(names, together.cells, strict=True):
        (alone,) = score(folder, task_ref(file), methods=name, out=tmp_path / name, device="cpu")
        assert cell.method == name
        for ours, theirs in zip(
            read_rows(together.path, cell),
            read_rows(alone.path, alone.cells[0]),
            strict=True,
        ):
            assert ours.judged == pytest.approx(theirs.judged, abs=1e-5)


@pytest.mark.long
def test_shares_of_marked_documents_are_means(make_checkpoint, make_custom_task, tmp_path):
    listed = [
        {"metric": n, "aggregation": f"!{f}"} for n, f in (("of_two", "share"), ("of_more", "rest"))
    ]
    file = make_custom_task(
        "toy_marked", "marked", metric_list=[*listed, {"metric": "odds", "aggregation": "!odds"}]
    )
    text = file.read_text()
    for name in ("share", "rest", "odds"):
        text = text.replace(f"'!{name}'", f"!function task_code.{name}")
    file.write_text(text)
    folder = make_checkpoint("causal", adds=True)
    _, cell = scored(folder, file, tmp_path / "run")
    (results, _), summary = evaluate_tasks([file], folder), cell.summary
    assert (summary.headline.value, summary.headline.n) == (
        pytest.approx(results["toy_marked"]["of_two,none"]),
        4,
    )
    assert (summary.views["of_more"].value, summary.views["of_more"].n) == (
        pytest.approx(results["toy_marked"]["of_more,none"]),
        1,
    )
    assert summary.views["odds"].value == pytest.approx(results["toy_marked"]["odds,none"])
    assert "left out: 1 item for which the task has no value" in summary.notes


SEVERAL = [
    {"q": "the cat", "choices": ["sees the dog", "see the dog", "sees a dog"], "gold": [0, 2]},
    {"q": "the boys", "choices": ["sleeps", "sleep", "has seen"], "gold": [1]},
    {"q": "which girl has", "choices": ["seen himself", "seen herself"], "gold": [0, 1]},
]


@pytest.mark.long
def test_the_best_of_several_right_options_is_right(make_checkpoint, make_task, tmp_path):
    file = make_task("toy_several", SEVERAL, metric_list=metrics("acc", "acc_norm"))
    folder = make_checkpoint("causal", adds=True)
    run, cell = scored(folder, file, tmp_path / "run")
    results, scores = evaluate_tasks([file], folder)
    found = read_rows(run.path, cell)
    assert cell.summary.metric == "task-score"
    assert [p.judged[0] for p in found] == [
        float(int(np.argmax(scores[p.id])) in doc["gold"])
        for p, doc in zip(found, SEVERAL, strict=True)
    ]
    assert cell.summary.headline.value == pytest.approx(results["toy_several"]["acc,none"])
    assert cell.summary.views["acc_norm"].value == pytest.approx(
        results["toy_several"]["acc_norm,none"]
    )


def test_an_option_that_is_none_is_no_right_one_of_several(make_task):
    docs = [*SEVERAL, {"q": "a", "choices": ["b", "c"], "gold": [0, 2]}]
    with pytest.raises(DataError, match="none of its 2 options"):
        load_suite(task_ref(make_task("toy_beyond", docs)))


@pytest.mark.long
def test_what_else_lm_eval_makes_of_choices_is_a_view(make_checkpoint, make_task, tmp_path):
    """acc_bytes, exact_match; mutual information requests options without context, too."""
    drawn, words = (
        random.Random(1),
        ("ä", "the", "boys", "girl", "sees", "☕", "ever", "old", "house", "himself"),
    )
    choices = [
        [" ".join(drawn.choices(words, k=drawn.randint(1, 4))) for _ in range(3)] for _ in range(40)
    ]
    docs = [{"q": "the dog", "choices": three, "gold": drawn.randrange(3)} for three in choices]
    names = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match")
    file, folder = (
        make_task("toy_views", docs, metric_list=metrics(*names)),
        make_checkpoint("causal", adds=True),
    )
    run, cell = scored(folder, file, tmp_path / "run")
    results, _ = evaluate_tasks([file], folder)
    assert all(len(p.scores) == 3 for p in read_rows(run.path, cell))
    views = {
        "acc": cell.summary.headline,
        "acc_norm": cell.summary.views["per-character"],
        **cell.summary.views,
    }
    for name in names:
        assert views[name].value == pytest.approx(results["toy_views"][f"{name},none"]), name
    assert len({views[name].value for name in names}) > 2


@pytest.mark.long
def test_a_single_continuation_is_the_first_choice_or_not(make_checkpoint, make_task, tmp_path):
    """lambada's acc: of continuations that the model would write itself, some are."""
    from lm_eval.models.huggingface import HFLM

    folder = make_checkpoint("causal", adds=True)
    import torch

    theirs, docs = HFLM(pretrained=str(folder), device="cpu", batch_size=1), []
    for context in ("the cat", "a dog", "the old house near", "who", "boys", "no girl"):
        ids = theirs.tokenizer(context)["input_ids"]
        with torch.inference_mode():
            best = int(theirs.model(torch.tensor([ids])).logits[0, -1].argmax())
        best = theirs.tokenizer.decode([best], skip_special_tokens=True)
        docs += [{"q": context, "end": end} for end in (best, " cat") if end]
    changes = {"doc_to_choice": None, "doc_to_target": "{{end}}", "output_type": "loglikelihood"}
    file = make_task(
        "toy_first", docs, **changes, metric_list=[{"metric": "perplexity"}, *metrics("acc")]
    )
    _, cell = scored(folder, file, tmp_path / "run")
    results, _ = evaluate_tasks([file], folder)
    assert cell.summary.metric == "surprisal"
    found = cell.summary.views["acc"]
    assert 0 < found.value == pytest.approx(results["toy_first"]["acc,none"])
    right = round(found.value * len(docs))
    credits_ = np.repeat([1.0, 0.0], [right, len(docs) - right])
    expected = score_interval(credits_, np.zeros(len(docs), np.int32), np.ones(1))
    assert (found.low, found.high) == pytest.approx(tuple(expected))
    assert f"also: acc {found.value:.4g}" in cell.summary.notes


LONG = " ".join(["the old boys near the small houses never see some girls"] * 12)
TEXTS = [
    {"q": text}
    for text in ("the cat sees the dog", LONG, "naïve dogs ☕\n\n never", f"{LONG} who", "a")
]
WHOLE = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{q}}",
    "doc_to_choice": None,
}
PERPLEXITIES = [
    {"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")
]


@pytest.mark.long
@pytest.mark.parametrize("own", [False, True])
def test_perplexities_of_long_documents_are_lm_eval_s(
    make_checkpoint, make_task, make_custom_task, tmp_path, own
):
    changes = {**WHOLE, "metric_list": PERPLEXITIES}
    file = (
        make_custom_task("toy_whole", "lengths", docs=TEXTS, **changes)
        if own
        else make_task("toy_whole", TEXTS, **changes)
    )
    folder = make_checkpoint("causal")
    run, cell = scored(folder, file, tmp_path / "run")
    results, _ = evaluate_tasks(
        [file], folder, max_length=64, add_bos_token=False
    )  # else it begins with two
    theirs, summary = results["toy_whole"], cell.summary
    assert (summary.metric, summary.headline.n) == ("bits-per-byte", 5)
    if own:  # it reports no bits_per_byte
        assert summary.headline.value == pytest.approx(
            math.log2(theirs["byte_perplexity,none"]), abs=1e-4
        )
    else:
        assert summary.headline.value == pytest.approx(theirs["bits_per_byte,none"], abs=1e-4)
    assert summary.views["byte-perplexity"].value == pytest.approx(
        theirs["byte_perplexity,none"], rel=1e-4
    )
    assert summary.views["word-perplexity"].value == pytest.approx(
        theirs["word_perplexity,none"], rel=1e-4
    )
    assert summary.headline.low < summary.headline.value < summary.headline.high
    tokens = [p.tokens[0] for p in read_rows(run.path, cell)]
    assert tokens[1] > 64 and tokens[0] < 20


@pytest.mark.long
def test_a_method_without_perplexity_is_refused_early(make_checkpoint, make_task, tmp_path):
    one = make_task(
        "toy_absent",
        **WHOLE,
        dataset_kwargs={"data_files": {"test": "absent.jsonl"}},
        tag="toy_tag",
    )
    (tmp_path / "group.yaml").write_text(
        yaml.safe_dump({"group": "toy_roll", "task": ["toy_absent"]})
    )
    for file in (one, tmp_path / "group.yaml"):
        with pytest.raises(MethodNotSupported, match="needs the method 'causal', not 'mlm'"):
            score(make_checkpoint("masked"), task_ref(file), out=tmp_path / "run", device="cpu")
    with pytest.raises(DataError, match="cannot build"):
        score(
            make_checkpoint("causal"),
            task_ref(one),
            methods="causal",
            out=tmp_path / "run",
            device="cpu",
        )


@pytest.mark.long
def test_code_that_fails_is_named_with_its_document(make_checkpoint, make_custom_task, tmp_path):
    file = make_custom_task("toy_broken", "broken", metric_list=metrics("acc"))
    with pytest.raises(DataError, match="own metric code fails: ZeroDivisionError") as caught:
        score(make_checkpoint("causal"), task_ref(file), out=tmp_path / "run", device="cpu")
    assert caught.value.location.endswith("toy_broken, document 1")


def test_other_code_is_another_suite(make_custom_task, tmp_path):
    file = make_custom_task("toy_code", "mass", metric_list=metrics("mass"))
    before = load_suite(task_ref(file)).digest
    assert load_suite(task_ref(file)).digest == before
    (tmp_path / "task_code.py").write_text(CODE.replace('doc["gold"] == 0', 'doc["gold"] == 1'))
    assert load_suite(task_ref(file)).digest != before


@pytest.mark.long
@pytest.mark.parametrize(("kind", "metric"), [("mass", "task-score"), ("whole", "bits-per-byte")])
def test_runs_of_task_metrics_pass_all_commands(
    make_checkpoint, make_task, make_custom_task, tmp_path, capsys, kind, metric
):
    if kind == "mass":
        file = make_custom_task("toy_all", "mass", metric_list=metrics("mass", "gap"))
    else:
        file = make_task("toy_all", TEXTS, **WHOLE, metric_list=PERPLEXITIES)
    folders = [make_checkpoint("causal"), make_checkpoint("causal", architecture="GPT2LMHeadModel")]
    values, found, _, results = run_every_command(folders, file, tmp_path, capsys)
    assert (found["metric"], found["headline"]["lower_is_better"]) == (
        metric,
        metric == "bits-per-byte",
    )
    name = "mass" if kind == "mass" else "bits_per_byte"
    assert results["results"]["lm-eval.toy_all"][f"{name},none"] == pytest.approx(values[0])
    assert results["higher_is_better"]["lm-eval.toy_all"] == {name: metric == "task-score"}


@pytest.mark.long
def test_another_engine_has_no_task_metric_values(make_checkpoint, make_custom_task, tmp_path):
    file, folder = (
        make_custom_task("toy_peer", "mass", metric_list=metrics("mass")),
        make_checkpoint("causal"),
    )
    for options in ({"engine": "minicons"}, {"precision": "adaptive"}):
        with pytest.raises(UsageError, match=r"toy_peer (scores|needs exact)") as caught:
            score(folder, task_ref(file), out=tmp_path / "run", device="cpu", **options)
        assert "reads log-probabilities and first choices" in caught.value.hint
