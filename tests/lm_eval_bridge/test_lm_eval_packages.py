"""Tasks of lm-eval that need a package or a metric of the hub: what is said where it is absent, and
what they say with it. The packages are doubles; the tasks are lm-eval's own files, on documents of
a test.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from lm_eval_reference import evaluate_tasks, task_ref
from sklearn.metrics import f1_score
from task_runs import score_task

from antlm_bench.errors import DataError
from antlm_bench.suites.loader import load_suite

pytestmark = pytest.mark.filterwarnings("ignore")  # the harness's own
WORDS = ("the", "boys", "girl", "sees", "ever", "old", "house", "himself", "a", "dog")


def rows(n, **columns):
    rng = random.Random(2)
    return [{name: draw(rng) for name, draw in columns.items()} for _ in range(n)]


def several(rng):
    return " ".join(rng.choices(WORDS, k=rng.randint(2, 6)))


@pytest.fixture
def make_shipped(tmp_path):
    """make_shipped(place, docs): a copy of a shipped task and of the files beside it, its data in a
    file.
    """

    def make(place, docs):
        import lm_eval.tasks

        source = Path(lm_eval.tasks.__file__).parent / place
        for beside in source.parent.iterdir():
            if beside.suffix in (".py", ".yaml") and beside != source:
                shutil.copy(beside, tmp_path)
        data = tmp_path / "docs.jsonl"
        data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
        splits = dict.fromkeys(("train", "validation", "test", "dev"), str(data))
        head = {
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": splits},
        }
        file = tmp_path / f"toy_{source.stem}.yaml"
        kept = [
            line
            for line in source.read_text().splitlines()
            if not line.startswith(("dataset_", "task:", "tag:"))
        ]
        file.write_text(f"task: {file.stem}\n{yaml.safe_dump(head)}" + "\n".join(kept) + "\n")
        return file

    return make


TINY = rows(100, input_formatted=several, answer=lambda rng: rng.randrange(4))


def test_a_package_that_is_absent_is_named_with_its_remedy(make_shipped, monkeypatch):
    monkeypatch.setitem(sys.modules, "tinyBenchmarks", None)
    with pytest.raises(DataError, match=r"pip install git.*tinyBenchmarks") as caught:
        load_suite(task_ref(make_shipped("tinyBenchmarks/tinyMMLU.yaml", TINY)))
    assert "pip install 'lm_eval[tasks]'" in caught.value.hint


@pytest.mark.long
def test_tinybenchmarks_weigh_a_hundred_documents_by_their_places(
    make_checkpoint, make_shipped, tmp_path, monkeypatch
):
    weights = np.random.default_rng(3).dirichlet(np.ones(100))

    def evaluate(items, benchmark):
        """As the package's: it looks its items up by number, and fails where one is missing."""
        return {benchmark: {"gpirt": sum(weights[at] * items[at] for at in range(100))}}

    monkeypatch.setitem(sys.modules, "tinyBenchmarks", SimpleNamespace(evaluate=evaluate))
    file, folder = (
        make_shipped("tinyBenchmarks/tinyMMLU.yaml", TINY),
        make_checkpoint("causal", adds=True),
    )
    _, cell = score_task(folder, file, tmp_path / "run", compat="lm-eval")
    results, _ = evaluate_tasks([file], folder)
    head = cell.summary.headline
    assert (cell.summary.metric, head.n) == ("whole-score", 100)
    assert head.value == pytest.approx(results["toy_tinyMMLU"]["acc_norm,none"], abs=1e-9)
    assert 0 < head.low < head.value < head.high < 1


class F1:
    """evaluate's metric of this name, which is scikit-learn's."""

    def compute(self, references, predictions, **how):
        return {"f1": f1_score(references, predictions, **how)}


@pytest.mark.long
@pytest.mark.parametrize("name", ["bec", "vaxx"])
def test_basqueglue_s_f1_is_lm_eval_s(make_checkpoint, make_shipped, tmp_path, monkeypatch, name):
    """It imports `load_metric` from datasets, which no longer has it; the metric itself is the
    hub's.
    """
    import evaluate

    monkeypatch.setattr(evaluate, "load", lambda name: {"f1": F1()}[name])
    docs = rows(40, text=several, label=lambda rng: rng.randrange(3))
    file, folder = (
        make_shipped(f"basqueglue/{name}.yaml", docs),
        make_checkpoint("causal", max_position_embeddings=256),
    )
    _, cell = score_task(folder, file, tmp_path / "run", compat="lm-eval")
    results, _ = evaluate_tasks([file], folder)
    assert cell.summary.metric == "whole-score"
    assert cell.summary.headline.value == pytest.approx(results[f"toy_{name}"]["f1,none"], abs=1e-9)
    assert 0 < cell.summary.headline.value < 1


NOTES = rows(12, dialogue=several, section_text=several)


@pytest.mark.parametrize(
    ("error", "says", "remedy"),
    [
        (
            FileNotFoundError("Couldn't find Module 'bleu'"),
            "RuntimeError: .*Module 'bleu'",
            "or the hub must be reachable",
        ),
        (
            ImportError("bert_score"),
            r"pip install evaluate bert-score",
            "install the missing package",
        ),
    ],
)
def test_a_metric_that_is_absent_is_named_too(make_shipped, monkeypatch, error, says, remedy):
    import evaluate

    def absent(*_, **__):
        raise error

    monkeypatch.setattr(evaluate, "load", absent)
    monkeypatch.delitem(sys.modules, "lm_eval.tasks.mts_dialog.utils", raising=False)
    with pytest.raises(DataError, match=says) as caught:
        load_suite(task_ref(make_shipped("mts_dialog/mts_dialog_perplexity.yaml", NOTES)))
    assert remedy in caught.value.hint


@pytest.mark.long
def test_perplexities_with_sibling_metrics_are_lm_eval_s(
    make_checkpoint, make_shipped, tmp_path, monkeypatch
):
    import evaluate

    monkeypatch.setattr(evaluate, "load", lambda *_, **__: None)  # no perplexity asks for one
    file, folder = (
        make_shipped("mts_dialog/mts_dialog_perplexity.yaml", NOTES),
        make_checkpoint("causal"),
    )
    _, cell = score_task(folder, file, tmp_path / "run")
    results, _ = evaluate_tasks([file], folder, add_bos_token=False)
    assert cell.summary.headline.value == pytest.approx(
        results["toy_mts_dialog_perplexity"]["bits_per_byte,none"], abs=1e-4
    )


def test_a_task_that_ends_the_process_is_an_error_like_any_other(make_task, tmp_path):
    """As lm-eval's slr_bench does where a program is missing."""
    (tmp_path / "leaving.py").write_text("import sys\nsys.exit('no such program')\n")
    file = make_task("toy_leaving", process_docs="leaving.any")
    file.write_text(file.read_text().replace("process_docs: ", "process_docs: !function "))
    with pytest.raises(DataError, match="SystemExit: no such program"):
        load_suite(task_ref(file))
