"""A record of an installed package works on the command line without changes to this package."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documented_pages import read_blocks
from prediction_rows import PredictionRow, from_rows, read_rows

from antlm_bench import runs
from antlm_bench.architectures import registration
from antlm_bench.architectures.records import ARCHITECTURES
from antlm_bench.cli.app import run
from antlm_bench.errors import DataError, UsageError
from antlm_bench.metrics import METRICS, MetricSettings
from antlm_bench.metrics.prediction_table import build_table
from antlm_bench.metrics.summary import load_metric
from antlm_bench.registry import Registry
from antlm_bench.reporting.table import Table
from antlm_bench.reporting.writers import FORMATS, OutputFormat
from antlm_bench.scoring.methods import METHODS
from antlm_bench.suites.loader import load_suite
from antlm_bench.suites.task_types import TASK_TYPES

Install = Callable[[str, Registry[Any], str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """install(code, registry, entries): a package on the path whose entry points add to a registry.

    The registry forgets the package afterwards.
    """
    path = tmp_path / "site-packages"
    path.mkdir()
    monkeypatch.syspath_prepend(str(path))

    def write(code: str, registry: Registry[Any], entries: str) -> None:
        (path / "stranger.py").write_text(code)
        info = path / "stranger-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{registry.group}]\n{entries}\n")
        for name in ("_targets", "_packages", "_records"):
            monkeypatch.setattr(registry, name, dict(getattr(registry, name)))
        monkeypatch.setattr(registry, "_scanned", False)

    yield write
    sys.modules.pop("stranger", None)


def animals_scored_by(metric: str) -> str:
    """The documented suite with a metric of its own."""
    text = documented("# tasks/animals.toml")
    return text.replace("groups =", f'metric = "{metric}"\ngroups =', 1)


@pytest.mark.long
def test_a_metric_of_a_package(
    install: Install,
    suites_folder: Path,
    make_checkpoint: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    install(documented("# brier.py"), METRICS, "brier = stranger:BRIER")
    (suites_folder / "animals.toml").write_text(animals_scored_by("brier"))
    rows = [
        {
            "good": f"the {a} sees the {b}.",
            "bad": f"the {a} see the {b}.",
            "animal": a,
            "scene": f"{a} {b}",  # one pair each: all are independent
        }
        for a in ("cat", "dog")
        for b in ("bird", "boy", "girl", "tree")
    ]
    (suites_folder / "animals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folders = [str(tmp_path / "run0"), str(tmp_path / "run1")]
    for seed, folder in enumerate(folders):
        model = make_checkpoint("causal", seed=seed)
        assert run(["score", "--model", str(model), "--suite", "animals", "--out", folder]) == 0
    shown = capsys.readouterr().out
    assert "brier, mean of 2 animals" in shown and "Brier score (less is better)" in shown

    means = []
    for folder in folders:
        (cell,) = runs.open_run(folder)
        scores = np.array([p.scores for p in read_rows(folder, cell)])
        wrong = 1 / (1 + np.exp(scores[:, 0] - scores[:, 1]))
        means.append(np.mean(wrong**2))
        assert cell.summary.metric == "brier"
        assert cell.summary.headline.value == pytest.approx(means[-1])

    assert run(["compare", *folders, "--json"]) == 0
    ((suite,),) = [c["comparisons"] for c in json.loads(capsys.readouterr().out)["comparisons"]]
    assert suite["headline"]["value"] == pytest.approx(means[1] - means[0])
    assert suite["headline"]["lower_is_better"]
    assert run(["compare", *folders]) == 0
    assert "lower is better" in capsys.readouterr().out
    assert run(["report", folders[0], "--csv"]) == 0
    assert f"{means[0]:.6f}"[:7] in capsys.readouterr().out
    assert run(["report", folders[0]]) == 0  # as the record says: neither percent nor times 100
    shown = capsys.readouterr().out
    assert f"{means[0]:.3f} [" in shown and "Percent" not in shown
    assert "Brier score (less is better) [95% interval]" in shown
    assert run(["export", folders[0], "--format", "csv", "--out", str(tmp_path / "items.csv")]) == 0


def test_a_misspelt_metric_of_a_package_gets_a_suggestion(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(documented("# brier.py"), METRICS, "brier = stranger:BRIER")
    (tmp_path / "animals.toml").write_text(animals_scored_by("breir"))
    assert run(["show", str(tmp_path / "animals.toml")]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "unknown metric 'breir'" in message and "did you mean 'brier'?" in message


# ---- suites, and kinds of suites: the examples of docs/how-to/extending.md

PAGE = Path(__file__).resolve().parent.parent / "docs" / "how-to" / "extending.md"


def documented(first_line: str) -> str:
    """The code block of docs/how-to/extending.md that begins with this line."""
    blocks = read_blocks(PAGE.read_text("utf-8"))
    [text] = (block.text for block in blocks if block.text.startswith(first_line))
    return text


@pytest.fixture
def suites_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder tasks/ of a folder of ANTLM_BENCH_PATH."""
    (tmp_path / "tasks").mkdir()
    monkeypatch.setenv("ANTLM_BENCH_PATH", str(tmp_path))
    return tmp_path / "tasks"


def test_a_suite_is_a_toml_in_a_folder_of_ones_own(suites_folder: Path) -> None:
    (suites_folder / "animals.toml").write_text(documented("# tasks/animals.toml"))
    (suites_folder / "animals.jsonl").write_text(documented('{"good"'))
    suite = load_suite("animals")
    assert [[o.text for o in item.options] for item in suite.items] == [
        ["the cat sees the bird.", "the cat see the bird."],
        ["the dog sees the bird.", "the dog see the bird."],
    ]
    assert suite.macro == ("animal",)
    assert suite.origin == ()  # a suite of the catalog, under its name


@pytest.mark.long
def test_a_kind_of_suite_is_one_record_of_a_package(
    install: Install,
    suites_folder: Path,
    make_checkpoint,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    install(documented("# cloze.py"), TASK_TYPES, "cloze = stranger:CLOZE")
    (suites_folder / "gaps.toml").write_text(documented("# tasks/gaps.toml"))
    model, out = str(make_checkpoint("causal")), str(tmp_path / "run")
    assert run(["list", "suites", "--csv"]) == 0
    assert "gaps,score,,,accuracy,Words in gaps" in capsys.readouterr().out
    assert run(["show", "gaps"]) == 0
    assert "Words in gaps" in capsys.readouterr().out
    assert run(["score", "--model", model, "--suite", "gaps", "--out", out]) == 0
    (cell,) = runs.open_run(out)
    predictions = read_rows(out, cell)
    assert [p.id for p in predictions] == ["gaps_0", "gaps_1"]
    right = [p.scores[0] > p.scores[1] for p in predictions]
    assert cell.summary.headline.value == sum(right) / 2
    capsys.readouterr()
    assert run(["compare", out, out, "--json"]) == 0
    assert '"gaps"' in capsys.readouterr().out
    assert run(["report", out, "--csv"]) == 0
    assert "gaps" in capsys.readouterr().out


@pytest.mark.long
def test_a_wrong_key_of_such_a_suite_is_named(
    install: Install, suites_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(documented("# cloze.py"), TASK_TYPES, "cloze = stranger:CLOZE")
    (suites_folder / "gaps.toml").write_text(
        documented("# tasks/gaps.toml").replace("sentences", "sentence")
    )
    assert run(["show", "gaps"]) == 2
    assert "unknown key 'sentence'" in capsys.readouterr().err


def test_finetune_sends_such_a_suite_to_score(
    install: Install,
    suites_folder: Path,
    make_checkpoint,
    capsys: pytest.CaptureFixture[str],
) -> None:
    install(documented("# cloze.py"), TASK_TYPES, "cloze = stranger:CLOZE")
    (suites_folder / "gaps.toml").write_text(documented("# tasks/gaps.toml"))
    assert run(["finetune", "--model", str(make_checkpoint("causal")), "--suite", "gaps"]) == 2
    assert "antlm-bench score --model CKPT --suite gaps" in " ".join(
        capsys.readouterr().err.split()
    )


GAP_KINDS = """
import pyarrow as pa
from dataclasses import replace
from antlm_bench.suites.task_types import SummarizeRequest

def fail(request):
    raise ZeroDivisionError("in here")

def nothing(request):
    return None

def change(rows):
    def predict(request):
        return [replace(p, table=rows(p.table)) for p in CLOZE.predict(request)]
    return predict

def rename(table):
    ids = pa.array(["gaps_0", "other"])
    return table.set_column(0, "id", ids)

def make(**fields):
    return replace(CLOZE, **fields)

FEW = make(predict=change(lambda table: table.slice(0, 1)))
SWAPPED = make(predict=change(lambda table: table.take([1, 0])))
RENAMED = make(predict=change(rename))
NO_METHOD = make(predict=lambda request: [])
NO_PREDICTIONS = make(predict=nothing)
FAILS_TO_PREDICT = make(predict=fail)
FAILS_TO_LOAD = make(load=fail)
NO_SUITE = make(load=nothing)
FAILS_TO_SUMMARIZE = make(summarize=fail)
NO_SUMMARY = make(summarize=nothing)
EXITS = make(load=lambda request: exit(0))
"""
KIND = "the kind of suite 'cloze' of the package stranger: "


@pytest.mark.long
@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ("FEW", "'cloze': 1 prediction for 2 items"),
        ("SWAPPED", "'cloze': prediction 1 has the id 'gaps_1', item 1 has 'gaps_0'"),
        ("RENAMED", "'cloze': prediction 2 has the id 'other', item 2 has 'gaps_1'"),
        ("NO_METHOD", KIND + "predict returned 0 Predictions for 1 methods"),
        ("NO_PREDICTIONS", KIND + "predict returned a NoneType, not a list of Predictions"),
        ("FAILS_TO_PREDICT", KIND + "predict failed: ZeroDivisionError: in here"),
        ("FAILS_TO_LOAD", KIND + "load failed: ZeroDivisionError: in here"),
        ("NO_SUITE", KIND + "load returned a NoneType, not a Suite"),
        ("FAILS_TO_SUMMARIZE", KIND + "summarize failed: ZeroDivisionError: in here"),
        ("NO_SUMMARY", KIND + "summarize returned a NoneType, not a Summary"),
        ("EXITS", KIND + "load failed: SystemExit: 0"),
    ],
)
def test_a_broken_kind_of_suite_is_refused_by_name(
    install: Install, suites_folder: Path, make_checkpoint, tmp_path: Path, capsys, record, problem
) -> None:
    install(documented("# cloze.py") + GAP_KINDS, TASK_TYPES, f"cloze = stranger:{record}")
    (suites_folder / "gaps.toml").write_text(documented("# tasks/gaps.toml"))
    command = ["score", "--model", str(make_checkpoint("causal")), "--suite", "gaps"]
    assert run([*command, "--out", str(tmp_path / "run"), "--device", "cpu"]) == 3
    assert problem in " ".join(capsys.readouterr().err.split())


# ---- metrics


METRIC_MAKER = """
import numpy as np
from antlm_bench.metrics import MetricSpec
from antlm_bench.metrics.item_mean import ItemMean

def fail(table, settings):
    raise IndexError("in here")

class Short(ItemMean):
    def per_item(self, table):
        return np.ones(1)

class Fails(ItemMean):
    def headline(self, table, macro):
        raise IndexError("in here")

class NoHeadline(ItemMean):
    def headline(self, table, macro):
        return None

def make(values, **fields):
    def item_values(table, settings):
        return values(len(table.gold))
    return MetricSpec("odd", "Odd", item_values=item_values, **fields)

SHORT = make(lambda n: np.ones(1))
FLAT = make(lambda n: np.ones((n, 1)))
NONE = make(lambda n: None)
TEXTS = make(lambda n: ["a"] * n)
INFINITE = make(lambda n: np.full(n, -np.inf))
OUTSIDE = make(lambda n: np.linspace(0, 2, n), value_range=(0.0, 1.0))
FAILING = MetricSpec("odd", "Odd", item_values=fail)
BY_PATH = MetricSpec("odd", "Odd", item_values="stranger:fail")
MISSING = MetricSpec("odd", "Odd", item_values="stranger:nowhere")
SHORT_CLASS = make(np.ones, aggregation=Short)
FAILING_CLASS = make(np.ones, aggregation="stranger:Fails")
NO_HEADLINE = make(np.ones, aggregation=NoHeadline)
"""
METRIC = "the metric 'odd' of the package stranger: "


@pytest.mark.long
@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ("SHORT", "the values of the items have the shape (1,), not (2,)"),
        ("FLAT", "the values of the items have the shape (2, 1), not (2,)"),
        ("NONE", "the values of the items are a NoneType of type object"),
        ("TEXTS", "the values of the items are a list of type <U1"),
        ("INFINITE", "the values of the items are -inf for the item animals_0"),
        ("OUTSIDE", "item animals_1 is 2, outside the metric's value_range 0 to 1"),
        ("FAILING", "item_values failed: IndexError: in here"),
        ("BY_PATH", "item_values failed: IndexError: in here"),
        ("MISSING", "item_values failed: AttributeError"),
        ("FAILING_CLASS", "aggregation.headline failed: IndexError: in here"),
        ("NO_HEADLINE", "failed: AttributeError"),
    ],
)
def test_a_broken_metric_is_refused_by_name(
    install: Install, suites_folder: Path, make_checkpoint, tmp_path: Path, capsys, record, problem
) -> None:
    install(METRIC_MAKER, METRICS, f"odd = stranger:{record}")
    toml = animals_scored_by("odd").replace('groups = ["animal"]', "").replace("macro =", "# ")
    (suites_folder / "animals.toml").write_text(toml)
    (suites_folder / "animals.jsonl").write_text(documented('{"good"'))
    command = ["score", "--model", str(make_checkpoint("causal")), "--suite", "animals"]
    assert run([*command, "--out", str(tmp_path / "run"), "--device", "cpu"]) == 3
    message = " ".join(capsys.readouterr().err.split())
    assert problem in message and METRIC[:-2] in message


def test_an_aggregation_returns_a_value_per_item(install: Install) -> None:
    install(METRIC_MAKER, METRICS, "odd = stranger:SHORT_CLASS")
    metric = load_metric("odd", MetricSettings())
    table = build_table(
        from_rows([PredictionRow(str(n), 0, 0, (1.0, 0.0), (1, 1), (1, 1)) for n in range(3)]),
        set(),
    )
    with pytest.raises(DataError, match=r"'odd'.*the shape \(1,\), not \(3,\)"):
        metric.per_item(table)


# ---- names and types of records


@pytest.mark.parametrize("name", ["a,b", "a b", "all", "auto", "-x", "a/b", ""])
def test_a_record_needs_a_name_that_an_option_can_hold(name: str) -> None:
    with pytest.raises(UsageError, match="an output format cannot be added"):
        FORMATS.add(OutputFormat(name, str))


@pytest.mark.long
@pytest.mark.parametrize(
    ("code", "registry", "entry", "command", "problem"),
    [
        ("", METHODS, "a,b = stranger:X", "methods", "a method with an invalid name: 'a,b'"),
        ("", METRICS, "all = stranger:X", "metrics", "'all' has a meaning of its own"),
        ("", FORMATS, "csv = stranger:X", "methods", "adds an output format named 'csv', which"),
        (
            "",
            METRICS,
            "accuracy = stranger:X",
            "metrics",
            "a metric named 'accuracy', which exists",
        ),
        ("X = {'name': 'x'}", METHODS, "x = stranger:X", "methods", "to a dict, not a Method"),
        ("exit(0)", METHODS, "x = stranger:X", "methods", "cannot be imported: SystemExit: 0"),
        ("1 / 0", METHODS, "x = stranger:X", "methods", "imported: ZeroDivisionError"),
        ("def:", METHODS, "x = stranger:X", "methods", "imported: SyntaxError"),
    ],
)
def test_a_wrong_entry_point_is_refused_with_its_package(
    install: Install, capsys, code: str, registry: Registry[Any], entry: str, command, problem: str
) -> None:
    install(code, registry, entry)
    assert run(["list", command, "--csv"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert problem in message and "stranger" in message


def test_a_clash_of_metrics_is_an_error_where_a_shipped_one_is_used(install: Install) -> None:
    install("", METRICS, "accuracy = stranger:X")
    with pytest.raises(UsageError, match="a metric named 'accuracy', which exists already"):
        METRICS["spearman"]


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("metrics", "brier,Brier score (less is better),"),
        ("task-types", "suite,a suite that is scored,true,antlm-bench"),
        ("formats", "markdown,"),
    ],
)
def test_list_shows_the_records_of_every_registry(install: Install, capsys, kind, row) -> None:
    install(documented("# brier.py"), METRICS, "brier = stranger:BRIER")
    assert run(["list", kind, "--csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(",package") and any(line.startswith(row) for line in lines)


# ---- suites of users in `list` and `show`


@pytest.mark.long
def test_an_invalid_toml_does_not_hide_the_others(suites_folder: Path, capsys) -> None:
    (suites_folder / "animals.toml").write_text(documented("# tasks/animals.toml"))
    (suites_folder / "broken.toml").write_text(animals_scored_by("nothing"))
    recipes = suites_folder.parent / "models"
    recipes.mkdir()
    (recipes / "odd.toml").write_text("colour = 1")
    for kind, row, problem in [
        ("suites", "animals,", "left out: broken: "),
        ("models", "ltg-bert", "left out: odd: "),
    ]:
        assert run(["list", kind, "--csv"]) == 0
        captured = capsys.readouterr()
        assert row in captured.out and problem in " ".join([*captured.err.split(), ""])
    assert run(["data", "list"]) == 0
    assert "animals" in capsys.readouterr().out


def test_show_finds_the_files_beside_a_toml_of_a_user(suites_folder: Path, capsys) -> None:
    (suites_folder / "animals.toml").write_text(documented("# tasks/animals.toml"))
    (suites_folder / "animals.jsonl").write_text(documented('{"good"'))
    assert run(["show", "animals"]) == 0
    assert "1 of 1 files here" in capsys.readouterr().out


# ---- scoring methods and architectures


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "agree.csv"
    lines = ["good,bad", "the cat sleeps,the cat never sleep", "a dog sees,a dog see"]
    path.write_text("\n".join([*lines, "every boy sees himself,every boy see"]))
    return path


@pytest.mark.long
def test_a_scoring_method_of_a_package(
    install: Install, make_checkpoint, pairs: Path, tmp_path: Path, capsys
) -> None:
    install(documented("# neighbour.py"), METHODS, "mlm-neighbour = stranger:NEIGHBOUR")
    assert run(["list", "methods", "--csv"]) == 0
    assert "mlm-neighbour,mlm with the token before it masked too,full" in capsys.readouterr().out
    assert run(["show", "mlm-neighbour"]) == 0

    folder, out = make_checkpoint("masked"), tmp_path / "run"
    command = ["score", "--model", str(folder), "--suite", str(pairs), "--out", str(out)]
    assert run([*command, "--method", "mlm-neighbour", "--device", "cpu"]) == 0
    [cell] = runs.open_run(out).cells
    assert cell.method == "mlm-neighbour"
    for prediction, line in zip(
        read_rows(out, cell), pairs.read_text().splitlines()[1:], strict=True
    ):
        expected = [two_hidden(folder, text) for text in line.split(",")]
        assert prediction.scores == pytest.approx(expected, abs=1e-4)
    assert run(["report", str(out)]) == 0


def two_hidden(folder: Path, text: str) -> float:
    """The sum over tokens of log P(token), itself and the one before it hidden, by transformers."""
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    ids, total = tokenizer(text)["input_ids"], 0.0
    for at in range(1, len(ids) - 1):
        row = torch.tensor([ids])
        row[0, max(at - 1, 1) : at + 1] = tokenizer.mask_token_id
        with torch.no_grad():
            total += model(input_ids=row).logits[0, at].log_softmax(-1)[ids[at]].item()
    return total


PROBE_FUNCTIONS = """
from antlm_bench.scoring.methods import Method
from antlm_bench.scoring.probes import mlm

def fail(encoded, mask_id):
    raise ZeroDivisionError("in here")

def nothing(encoded, mask_id):
    return None

def read_far(encoded, mask_id):
    probes = mlm(encoded, mask_id)
    probes.position[:] = 9999
    return probes

def no_rows(encoded, mask_id):
    probes = mlm(encoded, mask_id)
    return replace(probes, ids=probes.ids[:0])

def invent(encoded, mask_id):
    probes = mlm(encoded, mask_id)
    probes.ids[:] = 10**6
    return probes
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("function", "problem"),
    [
        ("fail", "'odd' of the package stranger: parts failed: ZeroDivisionError: in here"),
        ("nothing", "'odd' of the package stranger: parts returned a NoneType, not Probes"),
        ("read_far", "parts returned Probes with a position of 9999"),
        ("no_rows", "parts returned Probes with a row of 0"),
        ("invent", "a scoring method reads the token id 1000000, but the model has the ids 0 to"),
    ],
)
def test_a_broken_probe_function_is_refused_by_name(
    install: Install, make_checkpoint, pairs: Path, tmp_path: Path, capsys, function, problem
) -> None:
    record = f"ODD = Method('odd', 'x', parts=(('full', {function}),), needs_mask=True)"
    code = "from dataclasses import replace" + PROBE_FUNCTIONS + record
    install(code, METHODS, "odd = stranger:ODD")
    command = ["score", "--model", str(make_checkpoint("masked")), "--suite", str(pairs)]
    command += ["--method", "odd", "--device", "cpu", "--out", str(tmp_path / "run")]
    assert run(command) == 3
    assert problem in " ".join(capsys.readouterr().err.split())


WIDE_RECIPE = """
title = "Wide"
sources = ["nobody"]
methods = ["causal"]
[model]
architecture = "wide-llama"
layers = 1
hidden = 16
heads = 2
ffn = 24
positions = 32
tied = true
norm_eps = 1e-6
[tokenizer]
vocabulary = 300
[corpus]
document = "line"
[[phase]]
steps = 3
causal = 1
[batch]
tokens = 64
length = 16
[optimizer]
name = "adamw"
lr = 1e-3
"""


@pytest.mark.long
def test_an_architecture_of_a_package(
    install: Install, pairs: Path, tmp_path: Path, capsys
) -> None:
    install(documented("# wide_record.py"), ARCHITECTURES, "wide-llama = stranger:WIDE_LLAMA")
    model_file = documented("# wide_llama.py")
    (tmp_path / "site-packages" / "wide_llama.py").write_text(model_file)
    registration.register_architectures.cache_clear()  # as in a new process
    registration.register_architectures()
    assert run(["list", "architectures", "--csv"]) == 0
    assert "wide-llama,wide_llama,Llama under another name" in capsys.readouterr().out

    recipe, text, out = tmp_path / "wide.toml", tmp_path / "text", tmp_path / "out"
    recipe.write_text(WIDE_RECIPE)
    text.mkdir()
    (text / "a.txt").write_text("the cat sees a dog\nno boy has ever seen the old house\n" * 30)
    assert run(["show", "models", str(recipe)]) == 0
    command = ["train", str(recipe), "--corpus", str(text), "--out", str(out), "--device", "cpu"]
    assert run(command) == 0
    config = json.loads((out / "main" / "config.json").read_text())
    assert config["auto_map"]["AutoModelForCausalLM"] == "wide_llama.WideLlamaForCausalLM"
    assert (out / "main" / "wide_llama.py").read_text() == model_file

    command = ["score", "--model", str(out / "main"), "--suite", str(pairs), "--device", "cpu"]
    assert run([*command, "--out", str(tmp_path / "run")]) == 0
    [cell] = runs.open_run(tmp_path / "run").cells
    assert cell.settings["architecture"] == "WideLlamaForCausalLM"


def test_an_output_format_is_one_record_of_a_package(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install(documented("# org_tables.py"), FORMATS, "org = stranger:ORG")
    assert run(["list", "methods", "--format", "org"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "| method | what it is | attention |"
    assert run(["list", "formats", "--format", "org"]) == 0
    row = "| org | Write the rows as an Org-mode table. Notes and legend are left out. | stranger |"
    assert row in capsys.readouterr().out
    assert "| mntp | one token masked, read one position to its left | full |" in out
    assert run(["list", "--format", "orq"]) == 2
    assert "Did you mean 'org'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("writer", "problem"),
    [
        ("lambda table: 1 / 0", "failed: ZeroDivisionError"),
        ("lambda table: None", "returned a NoneType, not a str"),
        ("lambda table: b'x'", "returned a bytes, not a str"),
        ("lambda table: chr(0xD800)", "returned text that is not valid Unicode"),
    ],
)
def test_a_broken_writer_is_refused_by_name(install: Install, capsys, writer, problem) -> None:
    code = (
        f"from antlm_bench.reporting.writers import OutputFormat\nX = OutputFormat('odd', {writer})"
    )
    install(code, FORMATS, "odd = stranger:X")
    assert run(["list", "methods", "--format", "odd"]) == 3
    message = " ".join(capsys.readouterr().err.split())
    assert f"the output format 'odd' of the package stranger: write {problem}" in message


def test_a_broken_architecture_is_refused_by_name(install: Install, tmp_path: Path, capsys) -> None:
    code = documented("# wide_record.py").replace("LLAMA.compute_size,", "lambda *_: None,")
    install(code, ARCHITECTURES, "wide-llama = stranger:WIDE_LLAMA")
    (tmp_path / "wide.toml").write_text(WIDE_RECIPE)
    assert run(["show", "models", str(tmp_path / "wide.toml")]) == 3
    message = " ".join(capsys.readouterr().err.split())
    assert "compute_size returned a NoneType, not a ModelSize" in message


def test_a_missing_layout_class_of_an_architecture_is_refused_by_name(
    install: Install, make_checkpoint, capsys
) -> None:
    code = documented("# wide_record.py").replace(
        "    config_settings=", '    original_layout="nowhere:Layout",\n    config_settings='
    )
    install(code, ARCHITECTURES, "wide-llama = stranger:WIDE_LLAMA")
    assert run(["doctor", "--model", str(make_checkpoint("causal"))]) == 3
    message = " ".join(capsys.readouterr().err.split())
    assert "the architecture 'wide-llama' of the package stranger failed: ModuleNotFound" in message


def test_an_exception_of_ours_stays_a_bug(install: Install, monkeypatch, capsys) -> None:
    def fail(table: Table) -> str:
        raise ZeroDivisionError

    monkeypatch.setitem(FORMATS._records, "markdown", OutputFormat("markdown", fail))
    assert run(["list", "methods", "--markdown"]) == 70
