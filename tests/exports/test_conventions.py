"""A leaderboard's file holds what the year's official code could have answered, or is marked."""

from __future__ import annotations

import contextlib
import gzip
import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import leaderboard_runs
import numpy as np
import pytest
from prediction_rows import from_rows
from scipy.stats import spearmanr

from antlm_bench import runs, score
from antlm_bench.cli.app import run as cli
from antlm_bench.commands.submit import Submission, submit
from antlm_bench.errors import DataError, IncompleteError, NotComparable, UsageError
from antlm_bench.exports import leaderboard
from antlm_bench.exports.external_parts import check_external_part
from antlm_bench.exports.leaderboard_answers import compute_milestone_scores
from antlm_bench.suites import loader, task_types
from antlm_bench.types import Cell, Group, Item, Manifest, Option

MOST = 3  # items per group
BOTH = {
    "auto": {"causal": "<s> ...", "full": "<s> ... </s>"},
    "tokenizer": {"causal": "...", "full": "<s> ... </s>"},
}
SAME = {"auto": {"causal": "<s> ...", "full": "<s> ... </s>"}} | {
    "tokenizer": {"causal": "<s> ...", "full": "<s> ... </s>"}
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        leaderboard, "load_schema", lambda name: leaderboard_runs.shrink_schema(name, MOST)
    )
    monkeypatch.setattr(
        loader, "load_suite", lambda name, **_: leaderboard_runs.make_suite(name, MOST)
    )


def sent(
    folder: Path,
    suite: str,
    year: str = "2025",
    method: str = "causal",
    model: Any = None,
    **settings: Any,
) -> Submission:
    """A file of one suite, of a run with these settings."""
    predictions = [
        leaderboard_runs.make_prediction(item, tokens=tuple(range(3, 3 + len(item.options))))
        for item in leaderboard_runs.make_suite(suite, MOST).items
    ]
    allow, flags = settings.pop("allow_conventions", False), settings.pop("flags", {})
    cell = leaderboard_runs.make_cell(
        suite, predictions, **leaderboard_runs.CONVENTIONS[year] | settings
    )
    cell = Cell(suite, method, "k", cell.settings, cell.summary)
    cell.summary.headline.flags.update(flags)  # type: ignore[attr-defined]
    run = leaderboard_runs.write_run(folder / "run", "lab/m", [])
    manifest = Manifest(
        runs.SCHEMA_VERSION,
        {"name": "out/m", "weights": "w", **(model or {})},
        {},
        "2026-01-01T00:00:00",
    )
    with runs.RunWriter(folder / "run", manifest) as writer:
        writer.write_cell(cell, from_rows(predictions))
    track = "strict"
    return submit(
        [run], year=year, track=track, out=folder / "f", allow_partial=True, allow_conventions=allow
    )


# ---- scored parts
# ------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize(
    ("suite", "year", "settings", "reason"),
    [
        (
            "blimp-filtered",
            "2025",
            {"bos": "auto"},
            "--bos auto (<s> ...), officially tokenizer (...)",
        ),
        (
            "blimp-filtered",
            "2025",
            {"delimiter": " "},
            "text before texts without context: ' ', officially ''",
        ),
        (
            "blimp-filtered",
            "2025",
            {"reduction": "per-token"},
            "options compared by per-token scores, officially by sum scores",
        ),
        ("blimp-filtered", "2025", {"dtype": "bfloat16"}, "scored in bfloat16, officially float32"),
        (
            "blimp-filtered",
            "2025",
            {"suite_version": "2020"},
            "version 2020 of blimp-filtered, now 2025",
        ),
        (
            "blimp-filtered",
            "2024",
            {"bos": "tokenizer"},
            "--bos tokenizer (...), officially auto (<s> ...)",
        ),
        (
            "blimp-filtered",
            "2024",
            {"delimiter": ""},
            "text before texts without context: '', officially ' '",
        ),
        (
            "ewok-2025",
            "2024",
            {"bos_before_context": ""},
            "--bos auto (<s> ...), officially never (...)",
        ),
        ("ewok-2025", "2024", {"bos_before_context": "tokenizer", "bos": "never"}, ""),
        (
            "global-piqa-parallel-2026",
            "2026",
            {"reduction": "sum"},
            "options compared by sum scores, officially by per-token scores",
        ),
        (
            "blimp-filtered",
            "2025",
            {"lengths": "declared", "flags": {"too-long": 2}},
            "2 texts beyond the declared length",
        ),
    ],
)
def test_a_setting_that_can_change_an_answer_is_refused(
    suite: str, year: str, settings: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    specials = {
        "specials": {
            "causal": "..." if settings.get("bos") in ("never", "tokenizer") else "<s> ..."
        }
    }
    model = {"specials_under": BOTH}
    if not reason:
        sent(tmp_path, suite, year, model=model, **specials, **settings)
        return
    with pytest.raises(NotComparable) as caught:
        sent(tmp_path, suite, year, model=model, **specials, **settings)
    assert reason in str(caught.value) and caught.value.exit_code == 6
    assert not (tmp_path / "f").exists()
    command = (
        f"antlm-bench score --model out/m --suite {suite} --method causal "
        f"--compat babylm-{year} --out"
    )
    assert command in caught.value.hint
    done = sent(
        tmp_path / "again", suite, year, model=model, allow_conventions=True, **specials, **settings
    )
    assert any(
        note.startswith(f"NOT by the conventions of babylm-{year}: ") and reason in note
        for note in done.notes
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("suite", "year", "settings"),
    [
        ("blimp-filtered", "2025", {"bos": "auto"}),  # the tokenizer adds the same by itself
        ("blimp-filtered", "2025", {"ties": "strict"}),  # the file has the year's rule
        (
            "blimp-filtered",
            "2025",
            {"precision": "adaptive"},
        ),  # accepted, though a few choices may differ
        ("blimp-filtered", "2025", {"lengths": "declared"}),  # nothing was too long
        (
            "blimp-filtered",
            "2024",
            {"compat": "lm-eval", "bos_before_context": "tokenizer"},
        ),  # no contexts there
        (
            "ewok-2025",
            "2024",
            {"delimiter": "", "bos_before_context": "never"},
        ),  # nothing but contexts there
        ("ewok-2025", "2025", {"delimiter": " ", "bos": "auto"}),
        ("wug-adj", "2025", {"softmax": "float64"}),  # the file has the year's precision
    ],
)
def test_a_setting_that_gives_the_same_answers_passes(
    suite: str, year: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    specials = {"causal": "<s> ..."}
    done = sent(
        tmp_path, suite, year, model={"specials_under": SAME}, specials=specials, **settings
    )
    assert not any("NOT by" in note for note in done.notes)


def test_never_is_the_tokenizers_own_where_it_adds_nothing(tmp_path: Path) -> None:
    options: dict[str, Any] = {"bos": "never", "specials": {"causal": "..."}}
    sent(tmp_path, "supplement", model={"specials_under": BOTH}, **options)
    with pytest.raises(
        NotComparable, match=r"--bos never \(\.\.\.\), officially tokenizer \(<s> \.\.\.\)"
    ):
        sent(tmp_path / "adds", "supplement", model={"specials_under": SAME}, **options)


def test_a_method_that_the_official_code_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotComparable, match="scored by mntp; the official code has causal, mlm"):
        sent(tmp_path, "supplement", "2024", "mntp")
    with pytest.raises(
        NotComparable, match="scored by mlm-l2r; the official code has causal, mlm, mntp"
    ):
        sent(tmp_path / "2025", "supplement", "2025", "mlm-l2r")
    sent(tmp_path / "mntp", "supplement", "2025", "mntp")


def test_a_run_by_the_rules_of_another_year_is_refused(tmp_path: Path) -> None:
    """Of masked models: 2024 has contexts, two spaces and means."""
    official = {
        "bos": "auto",
        "context": "eos",
        "delimiter": " ",
        "joiner": " ",
        "reduction": "per-token",
    }
    official |= {
        "specials": {"full": "<s> ... </s>"},
        "bos_before_context": "",
        "lengths": "declared",
    }
    model = {"specials_under": SAME}
    sent(tmp_path / "right", "supplement", "2024", "mlm", model, **official)
    for name, value in {"context": "", "joiner": "", "reduction": "sum", "delimiter": ""}.items():
        with pytest.raises(
            NotComparable, match="1 parts are not by the conventions of babylm-2024"
        ):
            sent(tmp_path / name, "supplement", "2024", "mlm", model, **official | {name: value})
    with pytest.raises(NotComparable, match="not by the conventions of babylm-2025"):
        sent(tmp_path / "2025", "supplement", "2025", "mlm", model, **official)


@pytest.mark.long
@pytest.mark.parametrize("adds", [True, False])
def test_real_runs_are_refused_where_the_bos_differs(
    adds: bool, make_checkpoint: Any, tmp_path: Path
) -> None:
    """`auto` and `tokenizer` differ only for a tokenizer that adds no BOS by itself; the run says
    which it is.
    """
    folder = make_checkpoint("causal", adds=adds)
    suite = replace(leaderboard_runs.make_suite("supplement", MOST), version="2025")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "load_requested_suite", lambda _: suite)
        score(folder, "supplement", out=tmp_path / "run", device="cpu")
        score(folder, "supplement", out=tmp_path / "right", device="cpu", compat="babylm-2025")
    options: dict[str, Any] = {
        "year": "2025",
        "track": "strict",
        "out": tmp_path / "f",
        "allow_partial": True,
    }
    submit([tmp_path / "right"], **options)
    if adds:
        submit([tmp_path / "run"], **options)
    else:
        with pytest.raises(
            NotComparable, match=r"--bos auto \(<s> \.\.\.\), officially tokenizer \(\.\.\.\)"
        ):
            submit([tmp_path / "run"], **options)


def test_the_file_ranks_float32_probabilities_whatever_the_run(tmp_path: Path) -> None:
    """Near 1 they are equal in float32 and not in float64: the official collator correlates the
    former.
    """
    toys = leaderboard_runs.make_suite("wug-adj", MOST).items
    gaps = (20.0, 25.0, 3.0)  # of which float32 cannot tell the first two apart
    predictions = [
        leaderboard_runs.make_prediction(i, scores=(0.0, -gap, -200.0))
        for i, gap in zip(toys, gaps, strict=True)
    ]
    cell = leaderboard_runs.make_cell("wug-adj", predictions, softmax="float64")
    run = leaderboard_runs.write_run(tmp_path / "r1", "chck_1M", [(cell, predictions)])
    done = submit([run], year="2025", track="strict", out=tmp_path / "f.json", allow_partial=True)
    rows = json.loads(done.path.read_text())["wug_adj"]["wug_adj"]["predictions"]
    probabilities = [float(1 / (np.float32(1) + np.exp(np.float32(-gap)))) for gap in gaps]
    assert [row["prob"] for row in rows] == pytest.approx(probabilities, abs=1e-7)
    assert rows[0]["prob"] == rows[1]["prob"] == 1.0
    wanted = spearmanr(probabilities, [item.gold for item in toys])[0]
    part = next(
        part
        for part in leaderboard.load_leaderboard("2025").milestone_parts
        if part.key == "wug_adj"
    )
    assert compute_milestone_scores(
        cell, part, "first", "float32", lambda: from_rows(predictions)
    ) == {"wug_adj": pytest.approx(wanted)}


# ---- finetuned parts
# ---------------------------------------------------------------------------------------------

SUBSTITUTE = "trained on a substitute, the 1,635 rows of SuperGLUE's validation set"


def with_labels(
    folder: Path, task: str = "rte", notes: tuple[str, ...] = (), **changes: Any
) -> Path:
    cell = leaderboard_runs.make_finetuned_cell(task, 42, **changes)
    cell = Cell(
        cell.suite, cell.method, "k", cell.settings, replace(cell.summary, notes=notes), seed=42
    )
    predictions = [
        leaderboard_runs.make_prediction(item)
        for item in leaderboard_runs.make_suite("supplement", MOST).items
    ]
    cells = [
        (cell, leaderboard_runs.make_class_predictions(task, MOST)),
        (leaderboard_runs.make_cell("supplement", predictions), predictions),
    ]
    return leaderboard_runs.write_run(folder, "out/m", cells)


def official_training(**changes: Any) -> dict[str, Any]:
    return {
        "training": leaderboard_runs.preset_settings("glue-2025", "rte", "babylm-2025")["training"]
        | changes
    }


@pytest.mark.long
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (official_training(epochs=1), "finetuned with epochs 1, officially 10"),
        (
            official_training(lr=1e-4, batch=8),
            "finetuned with lr 0.0001, officially 3e-05; batch 8, officially 32",
        ),
        ({"limit": [1000, None]}, "finetuned with --limit-train 1000"),
        ({"select": "held-out"}, "epochs chosen on held-out, officially on valid"),
        ({"lora": 8}, "finetuned with --lora 8"),
        ({"pooling": "mean"}, "finetuned with --pooling mean"),
        ({"dtype": "bfloat16"}, "finetuned in bfloat16"),
    ],
)
def test_another_finetuning_than_the_official_one_is_refused(
    changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    run = with_labels(tmp_path / "run", **changes)
    options: dict[str, Any] = {
        "year": "2026",
        "track": "strict",
        "out": tmp_path / "f",
        "allow_partial": True,
    }
    with pytest.raises(NotComparable) as caught:
        submit([run], **options)
    assert f"glue.rte: {reason}" in caught.value.message
    command = (
        "antlm-bench finetune --model out/m --suite glue-2025 --attention causal "
        "--compat babylm-2025 --seed 42"
    )
    assert command in caught.value.hint
    done = submit([run], allow_conventions=True, **options)
    assert any("NOT by the conventions" in note and reason in note for note in done.notes)


def test_a_substitute_train_set_is_refused(tmp_path: Path) -> None:
    spec, _ = task_types.read_declaration("glue-2025")
    says = spec.task["boolq"].substitutes[0].says  # type: ignore[union-attr]
    assert SUBSTITUTE in says
    official = leaderboard_runs.preset_settings("glue-2025", "boolq", "babylm-2025")
    run = with_labels(tmp_path / "run", "boolq", (says,), **official)
    with pytest.raises(NotComparable, match=f"glue.boolq: {SUBSTITUTE}"):
        submit([run], year="2026", track="strict", out=tmp_path / "f", allow_partial=True)


def test_cells_that_the_file_does_not_hold_need_no_permission(tmp_path: Path) -> None:
    """2025's file has all labels or none: one task finetuned in another way is a hole, and no
    deviation.
    """
    run = with_labels(tmp_path / "run", lora=8)
    done = submit([run], year="2025", track="strict", out=tmp_path / "f", allow_partial=True)
    assert "glue" not in json.loads(done.path.read_text())
    assert not any("lora" in note for note in done.notes)


# ---- one file, one model
# -----------------------------------------------------------------------------------------

MODEL = {
    "architecture": "LlamaForCausalLM",
    "vocabulary": 400,
    "parameters": 1000,
    "tokenizer": "t",
}


def family(folder: Path, **of_milestone_two: Any) -> list[Path]:
    """A final model and two milestones; what is given is the second's."""
    made = []
    for name, number in (("main", 0), ("chck_1M", 1), ("chck_2M", 2)):
        suite = "supplement-fast" if number else "supplement"
        predictions = [
            leaderboard_runs.make_prediction(item)
            for item in leaderboard_runs.make_suite(suite, MOST).items
        ]
        changed = of_milestone_two if number == 2 else {}
        groups = tuple(
            Group("paradigm", name, leaderboard_runs.HALF)
            for name in leaderboard_runs.group_sizes(suite)
        )
        cell = leaderboard_runs.make_cell(
            suite, predictions, groups, **{k: v for k, v in changed.items() if k not in MODEL}
        )
        model = MODEL | {k: v for k, v in changed.items() if k in MODEL}
        manifest = Manifest(
            runs.SCHEMA_VERSION,
            {"name": f"out/{name}", "weights": name, **model},
            {},
            "2026-01-01T00:00:00",
        )
        with runs.RunWriter(folder / name, manifest) as writer:
            writer.write_cell(cell, from_rows(predictions))
        made.append(folder / name)
    return made


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("architecture", "GPT2LMHeadModel", "another architecture"),
        ("vocabulary", 500, "another vocabulary"),
        ("parameters", 7, "another size"),
    ],
)
def test_a_milestone_of_another_model_is_refused(
    name: str, value: Any, what: str, tmp_path: Path
) -> None:
    folders = family(tmp_path, **{name: value})
    options: dict[str, Any] = {
        "year": "2025",
        "track": "strict",
        "out": tmp_path / "f",
        "allow_partial": True,
    }
    for allow in (False, True):  # no convention: another model
        with pytest.raises(UsageError, match=f"out/chck_2M has {what}") as caught:
            submit(folders, allow_conventions=allow, **options)
    assert caught.value.location == str(folders[2])


@pytest.mark.long
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"tokenizer": "u"},
            "fast_eval_results.blimp_supplement: "
            "another tokenizer than the final model's (chck_2M)",
        ),
        (
            {"dtype": "float16"},
            "fast_eval_results.blimp_supplement: scored in float16, officially float32 (chck_2M)",
        ),
        (
            {"suite_digest": "x"},
            "fast_eval_results.blimp_supplement: other data than at chck_2M (chck_1M)",
        ),
        ({"conventions": 9}, "another version of our conventions than at chck_2M (chck_1M)"),
    ],
)
def test_milestones_scored_unlike_are_refused_and_named(
    changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    folders = family(tmp_path, **changes)
    options: dict[str, Any] = {
        "year": "2026",
        "track": "strict",
        "out": tmp_path / "f",
        "allow_partial": True,
    }
    with pytest.raises(NotComparable) as caught:
        submit(folders, **options)
    assert reason in caught.value.message
    done = submit(folders, allow_conventions=True, **options)
    assert any(reason in note for note in done.notes)
    submit(family(tmp_path / "alike"), **options)


def test_holes_and_deviations_are_said_together(tmp_path: Path) -> None:
    folders = family(tmp_path, dtype="float16")
    with pytest.raises(IncompleteError, match="parts of the 2026 file are missing") as caught:
        submit(folders, year="2026", track="strict", out=tmp_path / "f")
    assert (
        "blimp_supplement: scored in float16, officially float32 (chck_2M)" in caught.value.message
    )


def test_the_verb_names_the_mending_command_and_marks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = family(tmp_path, dtype="float16")
    argv = [
        "submit",
        *map(str, folders),
        "--year",
        "2026",
        "--track",
        "strict",
        "--out",
        str(tmp_path / "f"),
    ]
    argv += ["--allow-partial"]
    assert cli(argv) == 6
    said = " ".join(capsys.readouterr().err.split())
    assert "--compat babylm-2026" in said and "--allow-conventions" in said
    assert cli([*argv, "--allow-conventions"]) == 0
    assert "NOT by the conventions of babylm-2026" in " ".join(capsys.readouterr().out.split())


# ---- 2024's form
# -------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("name", ["x.json", "x.json.gz", "x"])
def test_2024_is_what_its_scorer_opens_whatever_the_name(name: str, tmp_path: Path) -> None:
    """score_predictions.py opens the file with gzip."""
    final = leaderboard_runs.write_final_run(tmp_path / "main", "2024", MOST)
    done = submit([final], year="2024", track="strict", out=tmp_path / name)
    with gzip.open(done.path, "rt") as file:
        assert list(json.load(file)) == ["glue", "blimp", "blimp_supplement", "ewok"]
    assert any("gzip" in note for note in done.notes) == (not name.endswith(".gz"))


# ---- parts made elsewhere
# ----------------------------------------------------------------------------------------


def part(key: str, year: str = "2025") -> leaderboard.PartSpec:
    return next(part for part in leaderboard.load_leaderboard(year).parts if part.key == key)


def supplement(**change: Any) -> dict[str, Any]:
    """A right part; `change` is of the first answer."""
    made: dict[str, Any] = {}
    for item in leaderboard_runs.make_suite("supplement", MOST).items:
        rows = made.setdefault(item.labels["paradigm"], {"predictions": []})["predictions"]
        rows.append({"id": item.id, "pred": item.options[1].text})
    next(iter(made.values()))["predictions"][0].update(change)
    return made


def glue(task: str, *labels: Any, start: int = 0) -> dict[str, Any]:
    rows = [{"id": f"{task}_{n}", "pred": label} for n, label in enumerate(labels, start)]
    return {task: {"predictions": rows}}


def wug(**change: Any) -> dict[str, Any]:
    rows = [
        {"id": i.id, "pred": i.options[0].text, "prob": 0.5}
        for i in leaderboard_runs.make_suite("wug-adj", MOST).items
    ]
    rows[0].update(change)
    return {"wug_adj": {"predictions": rows}}


def devbench(**change: Any) -> dict[str, Any]:
    return {
        key: {"predictions": np.zeros(shape).tolist()} for key, shape in SHAPES.items()
    } | change


SHAPES = {"lex-viz_visual": (5, 4, 1), "trog": (7, 4, 1), "things": (6, 6)}


def test_the_shapes_of_devbench_are_the_official_ones() -> None:
    official = {
        "lex-viz_visual": (119, 4, 1),
        "trog": (76, 4, 1),
        "things": (1854, 1854),
    }  # DEVBENCH, collate_preds.py
    assert part("devbench").shapes == part("devbench", "2026").shapes == official


def check(key: str, value: Any, milestones: list[int], texts: Any) -> list[str]:
    """Of devbench small arrays."""
    spec = part(key)
    spec = spec.model_copy(update={"shapes": SHAPES}) if spec.shapes else spec
    return check_external_part(key, value, spec, milestones, texts, False)


WRONG_PARTS: list[tuple[str, Callable[[], Any], str]] = [
    (
        "blimp_supplement",
        lambda: supplement(id="hypernym_7"),
        "hypernym, answer 1: id is 'hypernym_7', not 'hypernym_0'",
    ),
    ("blimp_supplement", lambda: supplement(pred="no such text"), "not an option of hypernym_0"),
    ("glue", lambda: glue("rte", 0, 1, 2), "rte, answer 3: pred is 2, not a class, 0..1"),
    ("glue", lambda: glue("mnli", 0, 1, 2, 3), "mnli, answer 4: pred is 3, not a class, 0..2"),
    ("glue", lambda: glue("rte", True), "pred is True, not a class"),
    ("glue", lambda: glue("rte", 0, start=1), "id is 'rte_1', not 'rte_0'"),
    ("wug_adj", lambda: wug(prob=float("nan")), "NaN at wug_adj.predictions.0.prob"),
    ("wug_adj", lambda: wug(prob=float("inf")), "an infinite number at wug_adj.predictions.0.prob"),
    (
        "vqa",
        lambda: {"VQA": {"predictions": [{"id": "VQA_3", "pred": " yes"}]}},
        "id is 'VQA_3', not 'VQA_0'",
    ),
    (
        "winoground",
        lambda: {"W": {"predictions": [{"id": "W_0", "pred": " "}]}},
        "pred is ' ', not a text",
    ),
    (
        "devbench",
        lambda: devbench(trog={"predictions": [[[0.5]]]}),
        "trog: predictions are not 7 x 4 x 1 numbers",
    ),
    (
        "devbench",
        lambda: {"trog": {"predictions": []}},
        "its keys are not lex-viz_visual, trog, things",
    ),
    (
        "reading",
        lambda: {"reading": {"predictions": [{"id": 1, "pred": 2.0, "prev_pred": 1.0}]}},
        "id is 1, not 0",
    ),
    (
        "reading",
        lambda: {"reading": {"predictions": [{"id": 0, "pred": float("nan"), "prev_pred": 1.0}]}},
        "NaN at reading.predictions.0.pred",
    ),
]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    WRONG_PARTS,
    ids=[f"{k}-{n}" for n, (k, *_) in enumerate(WRONG_PARTS)],
)
def test_a_part_made_elsewhere_that_is_not_the_part_is_refused(
    key: str, value: Callable[[], Any], words: str
) -> None:
    def texts(name: str) -> Any:
        return (
            reading_suite() if name == "reading-2025" else leaderboard_runs.make_suite(name, MOST)
        )

    with pytest.raises(DataError) as caught:
        check(key, value(), [1], texts)
    assert words in caught.value.message and caught.value.location == f"--part {key}"


def reading_suite() -> Any:
    suite = leaderboard_runs.make_suite("supplement", MOST)
    return replace(suite, items=(reading_item(1), reading_item(2)))


def reading_item(options: int) -> Item:
    return Item(f"reading_{options}", (Option("a"),) * options, 0)


def test_parts_made_elsewhere_that_are_right_pass() -> None:
    texts = leaderboard_runs.make_suite
    right = {
        "blimp_supplement": supplement(),
        "glue": glue("rte", 0, 1, 1),
        "wug_adj": wug(),
        "devbench": devbench(),
    }
    right |= {
        "vqa": {"VQA": {"predictions": [{"id": f"VQA_{n}", "pred": " yes"} for n in range(3)]}}
    }
    for key, value in right.items():
        assert check(key, value, [1], lambda name: texts(name, MOST)) == []
    rows = [
        {"id": 0, "pred": 1.0, "prev_pred": float("nan")},
        {"id": 1, "pred": 1.0, "prev_pred": 2.0},
    ]
    reading = {"reading": {"predictions": rows}}
    assert check("reading", reading, [1], lambda _: reading_suite()) == []
    rows[1]["prev_pred"] = float("nan")
    with pytest.raises(DataError, match="not the surprisal of the preceding word"):
        check("reading", reading, [1], lambda _: reading_suite())


def test_texts_that_cannot_be_checked_are_said() -> None:
    def absent(name: str) -> Any:
        raise DataError("it is not here", location=name)

    [note] = check("blimp_supplement", supplement(), [1], absent)
    assert (
        note == "blimp_supplement: computed elsewhere; its texts were not checked: it is not here"
    )


def curves(**change: Any) -> dict[str, Any]:
    rows = [
        {
            "step": f"chck_{m}M",
            "word_count": m * 10**6,
            "target_word": w,
            "context_id": n,
            "context": c,
            "surprisal": 1.0,
        }
        for m in (1, 2)
        for w, n, c in (("cat", 0, "the"), ("cat", 1, "an old"), ("dog", 0, "a"))
    ]
    rows[0].update(change)
    return {"metadata": {}, "results": rows}


def words_suite(_: str) -> Any:
    suite = leaderboard_runs.make_suite("supplement", MOST)
    words = [("cat_0", "the cat"), ("cat_1", "an old cat"), ("dog_0", "a dog")]
    made = tuple(Item(name, (Option(text, (len(text) - 3, len(text))),), 0) for name, text in words)
    return replace(suite, items=made)


def test_words_in_contexts_made_elsewhere_are_those_of_the_suite() -> None:
    def given(**change: Any) -> None:
        check("aoa", curves(**change), [1, 2], words_suite)

    given()
    given(surprisal=float("nan"))  # officially, of a text that does not fit
    for change, words in {
        ("target_word", "cow"): "the word in context is ('cow', '0')",
        ("context", "some"): "the word in context is ('cat', '0')",
        ("word_count", 7): "word_count is 7, not 1000000",
        ("context_id", 1): "the word in context is ('cat', '1')",
    }.items():
        with pytest.raises(DataError) as caught:
            given(**dict([change]))
        assert words in caught.value.message
    with pytest.raises(DataError, match="not each of the 3 words in context once"):
        given(context_id=1, context="an old")


NESTED: Any = []
for _ in range(900):
    NESTED = [NESTED]
ODD: list[Any] = [
    None,
    0,
    "x",
    [],
    {},
    [[]],
    {"a": 1},
    {"a": {"predictions": 1}},
    {"a": {"predictions": [1, []]}},
]
ODD += [
    {"a": {"predictions": [{}]}},
    {"results": 1},
    {"results": [1, {}, {"step": []}]},
    {"trog": 1},
    NESTED,
]
ODD += [
    {"results": [{"step": "chck_1M", "target_word": [], "context_id": {}}]},
    {"rte": {"predictions": [{"pred": []}]}},
]


@pytest.mark.long
@pytest.mark.parametrize("key", [p.key for p in leaderboard.load_leaderboard("2025").parts])
def test_odd_json_is_an_error_or_left_to_the_schema(key: str) -> None:
    def texts(name: str) -> Any:
        return (
            words_suite(name)
            if name.startswith(("aoa", "reading"))
            else leaderboard_runs.make_suite(name, MOST)
        )

    for value in ODD:
        with contextlib.suppress(DataError):
            check(key, value, [1], texts)


def test_the_mending_command_is_ready_for_a_shell(tmp_path: Path) -> None:
    with pytest.raises(NotComparable) as caught:
        sent(tmp_path / "a b", "supplement", dtype="bfloat16")
    command = next(
        line for line in caught.value.hint.splitlines() if line.strip().startswith("antlm-bench")
    )
    assert shlex.split(command)[-1] == str(tmp_path / "a b" / "run")
