"""Tasks of lm-eval that are Python classes: their requests decide the output type, and their own
code computes their metrics.
"""

from __future__ import annotations

import json
import random

import pytest
from lm_eval_reference import evaluate_tasks, task_ref
from prediction_rows import read_rows
from task_runs import run_every_command, score_task

from antlm_bench.errors import UsageError
from antlm_bench.lm_eval_bridge.registration import MODEL_NAME, register_model
from antlm_bench.suites.loader import load_suite

pytestmark = pytest.mark.filterwarnings("ignore")  # the harness's own
WORDS = ("the", "boys", "girl", "sees", "ever", "old", "house", "himself", "a", "dog")
# The shipped classes, on documents of a test instead of the hub's. Two things else of theirs are on
# the hub, and no choice needs them: the metric of their siblings that generate text, which any task
# of scrolls looks for, and squad's.
CLASSES = '''
import json
from pathlib import Path
import evaluate
from datasets import Dataset
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.task import ConfigurableTask, MultipleChoiceTask
from lm_eval.tasks.scrolls import task as scrolls

scrolls.load, scrolls._download_metric = (lambda *_, **__: None), (lambda: "")


class Made:
    def download(self, *_, **__):
        rows = json.loads(Path(__file__).with_name("made.json").read_text())
        data = Dataset.from_list(rows)
        data = scrolls._drop_duplicates_in_input(data) if "output" in rows[0] else data
        self.dataset = {"train": data, "validation": data}


class Quality(Made, scrolls.QuALITY):
    pass


class ContractNLI(Made, scrolls.ContractNLI):
    pass


class Qasper(Made, scrolls.Qasper):
    pass


class GovReport(Made, scrolls.GovReport):
    pass


class Old(Made, MultipleChoiceTask):
    """The harness's older kind of class, which has no configuration to speak of."""

    VERSION = 1

    def has_training_docs(self):
        return False

    def has_validation_docs(self):
        return True

    def has_test_docs(self):
        return False

    def validation_docs(self):
        return self.dataset["validation"]

    def doc_to_text(self, doc):
        return doc["q"]

    def fewshot_context(self, doc, num_fewshot, **_):
        return self.doc_to_text(doc)

    # The class's own does not take what 0.4.13 passes.
    def construct_requests(self, doc, ctx, metadata=None, **_):
        return super().construct_requests(doc, ctx, metadata=metadata)


class Whole(Old):
    def construct_requests(self, doc, ctx, metadata=None, **_):
        return Instance("loglikelihood_rolling", doc, (doc["q"],), 0, metadata=metadata)

    def process_results(self, doc, results):
        (said,) = results
        num_bytes, num_words = len(doc["q"].encode()), len(doc["q"].split())
        return {"byte_perplexity": (said, num_bytes), "word_perplexity": (said, num_words)}

    def aggregation(self):
        from lm_eval.api.metrics import weighted_perplexity

        return dict.fromkeys(("word_perplexity", "byte_perplexity"), weighted_perplexity)

    def higher_is_better(self):
        return dict.fromkeys(("word_perplexity", "byte_perplexity"), False)


class Backwards(Whole):
    """Requests in another order than it reads responses, and more of them than choices."""

    def construct_requests(self, doc, ctx, metadata=None, **_):
        texts = [doc["choices"][doc["gold"]], "dog", *doc["choices"]]
        pairs = [(ctx, f" {text}") for text in texts]
        requests = [
            Instance("loglikelihood", doc, pair, n, metadata=metadata)
            for n, pair in enumerate(pairs)
        ]
        return requests[::-1]

    def process_results(self, doc, results):
        (right, _), (dog, first), *_ = results
        return {"ahead": right - dog, "first": first}

    def aggregation(self):
        return {"ahead": mean, "first": mean}

    def higher_is_better(self):
        return {"ahead": True, "first": True}


class Single(Whole):
    def construct_requests(self, doc, ctx, metadata=None, **_):
        return [Instance("loglikelihood", doc, (ctx, " dog"), 0, metadata=metadata)]

    def process_results(self, doc, results):
        ((ll, _),) = results
        return {"bits": -ll}

    def aggregation(self):
        return {"bits": mean}

    def higher_is_better(self):
        return {"bits": False}


class Pictured(Single):
    def construct_requests(self, doc, ctx, metadata=None, **_):
        return [Instance("loglikelihood", doc, (ctx, " dog", {"visual": []}), 0, metadata=metadata)]


class Mixed(Single):
    def construct_requests(self, doc, ctx, metadata=None, **_):
        choices = super().construct_requests(doc, ctx, metadata)
        return [*choices, Whole.construct_requests(self, doc, ctx, metadata)]
'''


def several(rng, most=3):
    return " ".join(rng.choices(WORDS, k=rng.randint(1, most)))


def made(kind, n=24):
    """Documents in the form of the class's own data."""
    rng, found = random.Random(1), []
    for number in range(n):
        row = {"id": str(number), "pid": f"{number}_0"}
        if kind == "Quality":
            options = [f"{several(rng)} {letter.lower()}" for letter in "ABCD"]
            listed = "".join(
                f" ({letter}) {option}\n" for letter, option in zip("ABCD", options, strict=True)
            )
            row |= {
                "input": f"who sees the dog\n\n{listed}\n\n{several(rng, 9)}",
                "output": rng.choice(options),
            }
        elif kind == "ContractNLI":
            answer = rng.choice(["Not mentioned", "Entailment", "Contradiction"])
            row |= {"input": f"{several(rng)}\n\n{several(rng, 9)}", "output": answer}
        elif kind in ("Qasper", "GovReport"):
            row |= {
                "input": f"{several(rng)}\n\n{several(rng)}",
                "output": ("yes", "the old house")[number % 2],
            }
        else:
            choices = [several(rng) for _ in range(3)]
            row = {"q": several(rng, 6), "choices": choices, "gold": rng.randrange(3)}
        found.append(row)
    return found


@pytest.fixture
def make_class(tmp_path):
    """make_class(kind): the YAML file of a task that is one of CLASSES, beside its documents."""

    def make(kind):
        (tmp_path / "classes.py").write_text(CLASSES)
        (tmp_path / "made.json").write_text(json.dumps(made(kind)))
        file = tmp_path / f"toy_{kind.lower()}.yaml"
        file.write_text(f"task: {file.stem}\nclass: !function classes.{kind}\n")
        return file

    return make


NUMBERS = {
    "Quality": ("task-score", ("em", "acc", "acc_norm")),
    "ContractNLI": ("task-score", ("em", "acc", "acc_norm")),
    "Old": ("task-score", ("acc", "acc_norm")),
    "Backwards": ("task-score", ("ahead", "first")),
    "Single": ("task-penalty", ("bits",)),
}


@pytest.mark.long
@pytest.mark.parametrize("kind", NUMBERS)
def test_a_class_s_numbers_are_lm_eval_s(make_checkpoint, make_class, tmp_path, kind):
    """QuALITY and ContractNLI are scrolls's, which call themselves `generate_until` and ask for
    choices.

    Without lm-eval's cache, which reads texts that are split at two places wrongly (see
    docs/how-to/lm-eval.md).
    """
    file, folder = (
        make_class(kind),
        make_checkpoint("causal", adds=True, max_position_embeddings=256),
    )
    run, cell = score_task(folder, file, tmp_path / "run", compat="lm-eval")
    (results, scores), summary = evaluate_tasks([file], folder, logits_cache=False), cell.summary
    metric, names = NUMBERS[kind]
    found = {**summary.views, names[0]: summary.headline}
    assert (summary.metric, summary.headline.n) == (metric, 24)
    for name in names:
        assert found[name].value == pytest.approx(results[file.stem][f"{name},none"], abs=1e-4), (
            name
        )
    for p in read_rows(run.path, cell):
        assert list(p.scores) == pytest.approx(scores[p.id], abs=1e-4)
    assert kind in ("Backwards", "Single") or 0 < found[names[-1]].value < 1


@pytest.mark.long
def test_a_class_of_whole_documents_has_lm_eval_s_perplexities(
    make_checkpoint, make_class, tmp_path
):
    file, folder = make_class("Whole"), make_checkpoint("causal")
    _, cell = score_task(folder, file, tmp_path / "run")
    (results, _), views = evaluate_tasks([file], folder, add_bos_token=False), cell.summary.views
    assert cell.summary.metric == "bits-per-byte"
    for name in ("byte_perplexity", "word_perplexity"):
        assert views[name.replace("_", "-")].value == pytest.approx(
            results["toy_whole"][f"{name},none"], rel=1e-4
        )


@pytest.mark.long
@pytest.mark.parametrize(
    ("architecture", "method"), [("masked", "mlm"), ("masked", "mntp"), ("causal", "fused")]
)
def test_other_methods_numbers_are_those_of_our_model_in_lm_eval(
    make_checkpoint, make_class, tmp_path, architecture, method
):
    register_model()
    file, folder = make_class("Quality"), make_checkpoint(architecture, max_position_embeddings=256)
    _, cell = score_task(folder, file, tmp_path / "run", methods=method)
    results, _ = evaluate_tasks([file], folder, model=MODEL_NAME, method=method)
    for name in ("acc", "acc_norm"):
        assert cell.summary.views[name].value == pytest.approx(
            results["toy_quality"][f"{name},none"], abs=1e-4
        )


@pytest.mark.long
def test_such_runs_are_compared_gated_reported_and_exported(
    make_checkpoint, make_class, tmp_path, capsys
):
    file = make_class("ContractNLI")
    folders = [
        make_checkpoint("causal", max_position_embeddings=256),
        make_checkpoint("causal", architecture="GPT2LMHeadModel", n_positions=256),
    ]
    values, found, _, results = run_every_command(folders, file, tmp_path, capsys)
    assert found["metric"] == "task-score"
    assert results["results"]["lm-eval.toy_contractnli"]["em,none"] == pytest.approx(values[0])


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("GovReport", "needs generated text"),
        ("Qasper", r"needs generated text \(generate_until and loglikelihood\)"),
        ("Pictured", r"cannot be scored \(inputs other than text and loglikelihood\)"),
        ("Mixed", r"cannot be scored \(loglikelihood and loglikelihood_rolling\)"),
    ],
)
def test_a_class_with_other_requests_is_refused(make_class, kind, says):
    with pytest.raises(UsageError, match=says) as caught:
        load_suite(task_ref(make_class(kind)))
    assert f"--tasks toy_{kind.lower()}" in caught.value.hint


def test_the_gold_of_a_class_is_its_target_continuation(make_class):
    suite, docs = load_suite(task_ref(make_class("ContractNLI"))), made("ContractNLI")
    right = [item.options[item.gold].text for item in suite.items]
    assert all(
        text.endswith(f"Conclusion: {doc['output']}") for text, doc in zip(right, docs, strict=True)
    )
