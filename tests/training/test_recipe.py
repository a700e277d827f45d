"""Recipes: how base, scale and overrides are merged, and how every error is named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from recipe_helpers import TABLES

from antlm_bench.errors import BenchError, DeclarationError, UsageError
from antlm_bench.training.recipe import list_scales, read_recipe

Write = Any  # see the fixture


def toml(tables: dict[str, Any], prefix: str = "") -> str:
    """Enough of a TOML writer for recipes."""
    plain = {k: v for k, v in tables.items() if not isinstance(v, dict) and not _tabular(v)}
    lines = [f"{key} = {_value(value)}" for key, value in plain.items()]
    for key, value in tables.items():
        if isinstance(value, dict):
            lines += [f"[{prefix}{key}]", toml(value, f"{prefix}{key}.")]
        elif _tabular(value):
            for table in value:
                lines += [f"[[{prefix}{key}]]", toml(table, f"{prefix}{key}.")]
    return "\n".join(lines)


def _tabular(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return str(value).lower() if isinstance(value, bool) else repr(value)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """write("name", text) puts a recipe where its name is found; write("name") puts the toy one,
    changed as told.
    """
    monkeypatch.setenv("ANTLM_BENCH_PATH", str(tmp_path))
    (tmp_path / "models").mkdir()

    def put(name: str, text: str = "", before: str = "", **changes: Any) -> Path:
        path = tmp_path / "models" / f"{name}.toml"
        tables = {k: v for k, v in TABLES.items() if k != "name"} | changes
        path.write_text(text or f"{before}\n{toml(tables)}")
        return path

    return put


def changed(table: str, **values: Any) -> dict[str, Any]:
    return {table: {**TABLES[table], **values}}


def test_base_recipe_scale_and_overrides_are_merged_in_order(write: Write) -> None:
    write("below", scale={"nano": {"model": {"layers": 1}, "batch": {"tokens": 32}}})
    lines = ['extends = "below"', 'title = "Above"', "[model]", "ffn = 96", "layers = 5"]
    lines += ["[scale.nano.model]", "hidden = 16"]
    lines += ["[[scale.small.phase]]", "epochs = 7", "causal = 1"]
    write("above", "\n".join(lines) + "\n")
    full = read_recipe("above")
    assert (full.name, full.title, full.scale) == ("above", "Above", "")
    assert (full.model.layers, full.model.ffn, full.model.hidden, full.batch.tokens) == (
        5,
        96,
        32,
        64,
    )
    nano = read_recipe(
        "above", "nano", ["model.heads=2", "optimizer.schedule=linear", "batch.longer=[[0.5, 32]]"]
    )
    assert (nano.model.layers, nano.model.ffn, nano.model.hidden, nano.batch.tokens) == (
        1,
        96,
        16,
        32,
    )
    assert (nano.model.heads, nano.optimizer.schedule, nano.batch.max_row_length) == (
        2,
        "linear",
        32,
    )
    assert nano.scale == "nano"
    assert [phase.epochs for phase in read_recipe("above", "small").phase] == [
        7
    ]  # a list replaces a list
    assert set(list_scales("above")) == {"nano", "small"}


def test_differences_are_inherited_replaced_and_taken_back(write: Write) -> None:
    def row(number: str, ours: str) -> str:
        return f'[[difference]]\nnumber = "{number}"\npaper = "p"\nours = "{ours}"\nwhy = "w"\n'

    tables = {k: v for k, v in TABLES.items() if k != "name"}
    write("below", toml(tables) + "\n" + row("a", "1") + row("b", "2") + row("c", "3"))
    write(
        "above",
        'extends = "below"\n' + row("b", "5") + row("d", "4") + '[[difference]]\nnumber = "c"\n',
    )
    result = {one.number: one.ours for one in read_recipe("above").difference}
    assert result == {"a": "1", "b": "5", "d": "4"}
    write("plain", 'extends = "below"\n')
    assert [one.number for one in read_recipe("plain").difference] == ["a", "b", "c"]


def test_a_path_is_read_as_it_is_and_may_extend_what_is_shipped(tmp_path: Path) -> None:
    own = tmp_path / "mine.toml"
    own.write_text('extends = "babyllama"\nseed = 3\n')
    assert (read_recipe(str(own)).seed, read_recipe(str(own)).model.layers) == (3, 16)


BAD: list[tuple[dict[str, Any], str, str]] = [
    (changed("model", layer=3), "model", "did you mean 'layers'?"),
    (changed("model", layers="3"), "model.layers", "integer"),
    (changed("model", layers=0), "model.layers", "greater than or equal to 1"),
    (changed("model", architecture="bert"), "model.architecture", "ltg-bert"),
    (changed("model", heads=5), "model", "heads = 5 must divide hidden = 32"),
    (changed("model", kv_heads=3), "model", "kv_heads must divide heads"),
    (changed("model", layer_mix="zero"), "model", "layer_mix is for ltg-bert"),
    (changed("model", norm_eps=float("nan")), "model.norm_eps", "finite"),
    (changed("tokenizer", vocabulary=200), "tokenizer.vocabulary", "261"),
    (changed("corpus", document="page"), "corpus.document", "'file', 'line' or 'corpus'"),
    ({"phase": []}, "", "at least one"),
    (
        {"phase": [{"epochs": 1, "causal": 1}, {"steps": 9, "causal": 1}]},
        "",
        "all in epochs or all in steps",
    ),
    ({"phase": [{"epochs": 1, "steps": 9, "causal": 1}]}, "phase.0", "either epochs or steps"),
    ({"phase": [{"causal": 1}]}, "phase.0", "either epochs or steps"),
    ({"phase": [{"epochs": 1}]}, "phase.0", "needs causal or masked above 0"),
    ({"phase": [{"epochs": 1, "causal": -1}]}, "phase.0.causal", "greater than or equal to 0"),
    ({"objective": {"rate": 1.5}}, "objective.rate", "less than or equal to 1"),
    ({"objective": {"corrupt": [0.8, 0.1, 0.2]}}, "objective", "three shares with sum 1"),
    ({"objective": {"corrupt": [0.8, 0.2]}}, "objective", "three shares with sum 1"),
    (changed("corpus", layout="files"), "corpus", "needs document = 'file' or 'corpus'"),
    (changed("corpus", layout="files", document="file", eos=True), "corpus", "eos = false"),
    (changed("corpus", held_out=1.0), "corpus.held_out", "less than 1"),
    (
        {
            "optimizer": {**TABLES["optimizer"], "ema": 0.9},
            "corpus": {"document": "line", "held_out": 0.1},
        },
        "",
        "ema = 0",
    ),
    (changed("batch", grows="pass"), "", "needs phases in steps"),
    ({"objective": {"even": True}}, "objective", "needs spans = 'uniform'"),
    (changed("batch", tokens=8), "batch", "at least one row of 16"),
    (changed("batch", longer=[[0.9, 16]]), "batch", "increasing whole lengths"),
    (changed("batch", longer=[[0.9, 32], [0.7, 64]]), "batch", "increasing shares"),
    (changed("batch", longer=[[1.0, 32]]), "batch", "shares between 0 and 1"),
    (
        changed("batch", longer=[[0.5, 100]], tokens=128),
        "",
        "rows of 100 do not fit model.positions = 64",
    ),
    (changed("optimizer", warmup=0.1, warmup_steps=5), "optimizer", "not both"),
    (changed("optimizer", cooldown=0.1), "optimizer", "final above 0"),
    (changed("optimizer", betas=[0.9]), "optimizer", "two numbers"),
    (changed("optimizer", lr=0.0), "optimizer.lr", "greater than 0"),
    (changed("optimizer", name="sgd"), "optimizer.name", "'adamw' or 'lamb'"),
    (changed("optimizer", exempt=["bias"]), "optimizer.exempt.0", "embeddings"),
    ({"methods": ["casual"]}, "", "did you mean 'causal'?"),
    ({"methods": ["mlm"]}, "", "an attention that no phase trains"),
    ({"phase": [{"epochs": 1, "masked": 1}], "methods": ["mntp"]}, "", "objective.masked = 'mntp'"),
    (
        {
            "phase": [{"epochs": 1, "masked": 1}],
            "methods": ["mlm"],
            "objective": {"masked": "mntp"},
        },
        "",
        "'mlm', not 'mntp'",
    ),
    ({"methods": []}, "", 'methods is empty: give one or several of methods = ["causal"]'),
    ({"distil": {"teachers": [], "temperature": 2.0, "alpha": 0.5}}, "distil", "teachers is empty"),
    ({"evaluate": {"suites": []}}, "evaluate", "suites is empty"),
    (
        {
            "phase": [{"epochs": 1, "masked": 1}],
            "methods": ["mlm"],
            "distil": {"teachers": ["a"], "temperature": 2.0, "alpha": 0.5},
        },
        "",
        "only causal phases",
    ),
    ({"sources": "me"}, "sources", "no array"),
    ({"seed": -1}, "seed", "greater than or equal to 0"),
    ({"optimiser": {}}, "", "did you mean 'optimizer'?"),
]


@pytest.mark.parametrize(
    ("changes", "key", "complaint"), BAD, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_slip_is_named_with_its_file_and_key(
    changes: dict[str, Any], key: str, complaint: str, write: Write
) -> None:
    path = write("bad", **changes)
    with pytest.raises(DeclarationError) as caught:
        read_recipe("bad")
    assert caught.value.location == (f"{path}: {key}" if key else str(path))
    assert complaint in caught.value.message


def test_a_missing_table_is_named(write: Write) -> None:
    path = write("bad", 'title = "x"\nsources = []\nmethods = []\n')
    with pytest.raises(DeclarationError, match=re.escape(f"{path}: model: Field required")):
        read_recipe("bad")


def test_extends_is_one_level_deep(write: Write) -> None:
    write("one")
    write("two", 'extends = "one"')
    path = write("three", 'extends = "two"')
    with pytest.raises(
        DeclarationError, match="'two' itself extends 'one', but only one level"
    ) as caught:
        read_recipe("three")
    assert caught.value.location == f"{path}: extends"
    write("four", "extends = 4")
    with pytest.raises(DeclarationError, match=r"extends = .* is not the name of a recipe"):
        read_recipe("four")
    write("five", 'extends = "nobody"')
    with pytest.raises(DeclarationError, match="unknown recipe 'nobody'"):
        read_recipe("five")


@pytest.mark.parametrize(
    ("scale", "change", "error", "complaint"),
    [
        ("huge", "", UsageError, "toy has no scale 'huge': it has nano"),
        ("nano", "model.layers", UsageError, "is not KEY=VALUE"),
        ("", "model..layers=1", UsageError, "is not KEY=VALUE"),
        ("", "extends=x", UsageError, "cannot be set"),
        ("", "name=x", UsageError, "cannot be set"),
        ("", "model.layers=[", DeclarationError, "is not a TOML value"),
        ("", "model.layers=many", DeclarationError, "integer"),
        ("", "model.layer=1", DeclarationError, "did you mean 'layers'?"),
        ("", "model=1", DeclarationError, "model"),
    ],
)
def test_scales_and_changes_that_cannot_be_are_refused(
    scale: str, change: str, error: type[BenchError], complaint: str, write: Write
) -> None:
    write("toy", scale={"nano": {"model": {"layers": 1}}})
    with pytest.raises(error, match=re.escape(complaint)):
        read_recipe("toy", scale, [change] if change else [])


@pytest.mark.parametrize(
    ("changes", "place", "message", "hint"),
    [
        (["optimizer.lr=abc"], "--set optimizer.lr=abc",
         "optimizer.lr: Input should be a valid number", "0.001"),
        (["seed=1", "optimizer.betas=0.9"], "--set optimizer.betas=0.9", "optimizer.betas",
         "[0.9, 0.95]"),
        (["optimizer.betas=[0.9]", "seed=1"], "--set optimizer.betas=[0.9]",
         "betas are two numbers", ""),
        (["methods=[]"], "--set methods=[]", "methods is empty", ""),
        (["seed=1", "objective.masked=mntp"], "--set objective.masked=mntp",
         "methods: 'mlm' needs objective.masked = 'mlm', not 'mntp'; "
         'give one or several of methods = ["causal", "mntp", "fused"]', ""),
        (["optimizer.warmup=0.1", "optimizer.warmup_steps=3"],
         "--set optimizer.warmup=0.1 --set optimizer.warmup_steps=3", "not both", ""),
    ],
)  # fmt: skip
def test_an_error_of_a_change_names_the_change(
    changes: list[str], place: str, message: str, hint: str, write: Write
) -> None:
    write("toy", phase=[{"epochs": 1, "causal": 1, "masked": 1}], methods=["causal", "mlm"],
          optimizer={"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.95]})  # fmt: skip
    with pytest.raises(DeclarationError) as caught:
        read_recipe("toy", "", changes)
    assert caught.value.location == place
    assert message in caught.value.message and hint in caught.value.hint


def test_an_error_of_the_recipe_names_its_file(write: Write) -> None:
    path = write("bad", **changed("optimizer", cooldown=0.1))
    with pytest.raises(DeclarationError) as caught:
        read_recipe("bad", "", ["optimizer.lr=1e-4"])
    assert caught.value.location == f"{path}: optimizer"


@pytest.mark.parametrize(
    ("recipe_key", "set_key"), [("warmup_steps", "warmup"), ("warmup", "warmup_steps")]
)
def test_a_change_replaces_the_key_that_it_excludes(
    recipe_key: str, set_key: str, write: Write
) -> None:
    values: dict[str, Any] = {"warmup": 0.25, "warmup_steps": 5}
    write("toy", **changed("optimizer", **{recipe_key: values[recipe_key]}))
    for change in (
        f"optimizer.{set_key}={values[set_key]}",
        f"optimizer={{{set_key}={values[set_key]}}}",
    ):
        spec = read_recipe("toy", "", [change]).optimizer
        assert getattr(spec, set_key) == values[set_key] and getattr(spec, recipe_key) is None


def test_a_recipe_without_scales_says_so(write: Write) -> None:
    write("plain")
    with pytest.raises(UsageError, match="it declares none"):
        read_recipe("plain", "nano")
    path = write("flat", before="scale = 1")
    with pytest.raises(DeclarationError, match="scale is not a table of tables") as caught:
        read_recipe("flat")
    assert caught.value.location == f"{path}: scale"


def test_attentions_are_those_that_some_phase_trains(write: Write) -> None:
    write(
        "both",
        phase=[{"epochs": 1, "causal": 1}, {"epochs": 1, "masked": 1}],
        methods=["mlm", "causal"],
    )
    assert read_recipe("both").attentions == ("causal", "full")
    write("one")
    assert read_recipe("one").attentions == ("causal",)
