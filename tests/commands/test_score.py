"""`score`: what is computed and what is kept, several methods at once, sweeps, and the files that a
run leaves.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from prediction_rows import read_rows
from score_helpers import count_work, hash_files, make_agreement_rows, write_pairs

from antlm_bench import runs, score, surprisal
from antlm_bench.checkpoints import pretrained
from antlm_bench.cli.app import run
from antlm_bench.errors import (
    CheckpointError,
    DataError,
    IncompleteError,
    MethodNotSupported,
    UsageError,
)
from antlm_bench.suites import loader

Make = Callable[..., Path]


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "agree.csv", make_agreement_rows())


# ---- what is kept


@pytest.mark.long
def test_the_command_repeated_computes_nothing_and_touches_nothing(
    make_checkpoint: Make, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, ask = count_work(monkeypatch), {"out": tmp_path / "run", "device": "cpu", "limit": 5}
    [first] = score(make_checkpoint(), [str(suite), "nano"], **ask)
    assert work.calls == 2 and [cell.suite for cell in first] == ["agree", "nano"]
    before = hash_files(tmp_path / "run")
    [second] = score(make_checkpoint(), [str(suite), "nano"], **ask)
    assert work.calls == 2 and second == first
    assert hash_files(tmp_path / "run") == before


@pytest.mark.long
def test_again_computes_anew_and_finds_the_same(
    make_checkpoint: Make, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, out = count_work(monkeypatch), tmp_path / "run"
    [first] = score(make_checkpoint(), str(suite), out=out, device="cpu")
    before = hash_files(out)
    [second] = score(make_checkpoint(), str(suite), out=out, device="cpu", again=True)
    assert work.calls == 2 and second == first
    assert {name: digest for name, (_, digest) in hash_files(out).items()} == {
        n: d for n, (_, d) in before.items()
    }
    assert hash_files(out)["run.json"][0] > before["run.json"][0]


def test_clusters_are_stored_and_cost_no_new_score(
    make_checkpoint: Make, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, out = count_work(monkeypatch), tmp_path / "run"
    [first] = score(make_checkpoint(), str(suite), out=out, device="cpu")
    rows = [{**row, "cluster": str(n // 4)} for n, row in enumerate(make_agreement_rows())]
    write_pairs(suite, rows)

    [kept] = score(make_checkpoint(), str(suite), out=out, device="cpu")
    calls = work.calls
    [again] = score(make_checkpoint(), str(suite), out=out, device="cpu", again=True)

    cell, old = again["agree"], first["agree"]
    assert calls == 1 and kept == first
    assert (cell.key, cell.estimate.value) == (old.key, old.estimate.value)
    assert (old.summary.num_clusters, cell.summary.num_clusters) == (0, 10)
    clusters = again.predictions("agree").column("cluster")
    assert clusters[0] == clusters[3] != clusters[4]


@pytest.mark.long
def test_damaged_predictions_are_computed_again(
    make_checkpoint: Make, suite: Path, tmp_path: Path
) -> None:
    [first] = score(make_checkpoint(), str(suite), out=tmp_path / "run", device="cpu")
    file = tmp_path / "run" / "predictions" / "agree.causal.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[:-40])
    [second] = score(make_checkpoint(), str(suite), out=tmp_path / "run", device="cpu")
    assert second == first and file.read_bytes() == whole


@pytest.mark.long
@pytest.mark.parametrize(
    "change",
    [
        {"bos": "never"},
        {"ties": "strict"},
        {"compat": "minicons"},
        {"max_length": 24},
        {"dtype": "bfloat16"},
        {"precision": "adaptive"},
    ],
    ids=lambda change: "=".join(map(str, next(iter(change.items())))),
)
def test_a_changed_convention_replaces_the_cell_and_changing_back_restores_it(
    make_checkpoint: Make, suite: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    ask = {"out": tmp_path / "run", "device": "cpu"}
    [[first]] = score(make_checkpoint(), str(suite), **ask)
    [[changed]] = score(make_checkpoint(), str(suite), **ask, **change)
    assert changed.key != first.key and (changed.suite, changed.method) == (
        first.suite,
        first.method,
    )
    name, value = next(iter(change.items()))
    assert changed.settings[name] == value
    [[back]] = score(make_checkpoint(), str(suite), **ask)
    assert back == first


@pytest.mark.long
def test_what_no_score_depends_on_does_not_change_the_key(
    make_checkpoint: Make, suite: Path, tmp_path: Path
) -> None:
    cells = [
        score(
            make_checkpoint(), str(suite), out=tmp_path / str(n), device="cpu", batch_tokens=budget
        )[0].cells[0]
        for n, budget in enumerate((None, 40))
    ]
    assert cells[0].key == cells[1].key


@pytest.mark.long
def test_a_changed_text_changes_the_key(make_checkpoint: Make, suite: Path, tmp_path: Path) -> None:
    [[first]] = score(make_checkpoint(), str(suite), out=tmp_path / "run", device="cpu")
    rows = make_agreement_rows()
    rows[7]["bad"] += "?"
    write_pairs(suite, rows)
    [[second]] = score(make_checkpoint(), str(suite), out=tmp_path / "run", device="cpu")
    assert second.key != first.key and second.digest != first.digest


@pytest.mark.long
def test_corrected_words_are_in_the_key_of_the_method_that_masks_words(
    make_checkpoint: Make, suite: Path, tmp_path: Path
) -> None:
    ask = {"device": "cpu", "methods": "mlm,mlm-l2r"}
    [plain] = score(make_checkpoint("masked"), str(suite), out=tmp_path / "a", **ask)
    rows = make_agreement_rows()
    rows[7]["bad"] += " e\u0301t"
    write_pairs(suite, rows)
    [marked] = score(make_checkpoint("masked"), str(suite), out=tmp_path / "b", **ask)
    assert [cell.settings.get("words") for cell in plain] == [None, None]
    assert [cell.settings.get("words") for cell in marked] == [None, "graphemes"]


@pytest.mark.long
def test_chosen_words_decide_what_is_masked(
    make_checkpoint: Make, suite: Path, tmp_path: Path
) -> None:
    model, sentences = make_checkpoint("masked"), tmp_path / "sentences.txt"
    rows = make_agreement_rows(4)
    write_pairs(suite, rows)
    sentences.write_text("".join(f"{row['good']}\n" for row in rows))
    ask = {"device": "cpu", "methods": "mlm,mlm-l2r"}
    [plain] = score(model, str(suite), out=tmp_path / "a", **ask)
    [chosen] = score(model, str(suite), out=tmp_path / "b", words="spaces", **ask)
    ask = {"device": "cpu", "method": "mlm-l2r", "by": "word", "base": "e"}
    surprisal(model, sentences, tmp_path / "s.csv", words="spaces", **ask)
    table = pd.read_csv(tmp_path / "s.csv").groupby("item").sum(numeric_only=True)
    [[mlm, l2r], [chosen_mlm, chosen_l2r]] = plain, chosen
    assert mlm == chosen_mlm
    assert [l2r.settings.get("words"), chosen_l2r.settings["words"]] == [None, "spaces"]
    scores = {
        run.path: [row.scores[0] for row in read_rows(run.path, run.cells[1])]
        for run in (plain, chosen)
    }
    expected = list(-table["surprisal_nats"])
    assert scores[chosen.path] == pytest.approx(expected, abs=1e-4)
    assert scores[plain.path] != pytest.approx(expected, abs=1e-2)


def test_words_without_a_method_that_masks_them_are_refused(
    make_checkpoint: Make, suite: Path, tmp_path: Path
) -> None:
    out, model = tmp_path / "run", make_checkpoint("masked")
    for methods in ("causal,mlm", ""):  # the second: the checkpoint's first
        with pytest.raises(UsageError, match=r"no score depends on words.*mlm") as error:
            score(model, str(suite), out=out, methods=methods or (), words="characters")
        assert error.value.location == "--words" and "mlm-l2r" in error.value.hint
    with pytest.raises(UsageError, match="unknown rule 'word'"):
        score(model, str(suite), out=out, methods="mlm-l2r", words="word")
    write_pairs(suite, [{"good": "ฉันรักแมว", "bad": "ฉันรักหมา"}])
    pytest.importorskip("jieba")
    with pytest.raises(UsageError, match=r"agree: agree_0 has text that jieba does not split"):
        score(model, str(suite), out=out, methods="mlm-l2r", words="jieba")
    assert not list(out.rglob("run.json"))


@pytest.mark.long
def test_another_method_or_suite_is_added(
    make_checkpoint: Make, suite: Path, tmp_path: Path
) -> None:
    ask = {"out": tmp_path / "run", "device": "cpu"}
    [first] = score(make_checkpoint(), str(suite), **ask)
    score(make_checkpoint(), str(suite), methods="mlm", **ask)
    [third] = score(make_checkpoint(), "nano", limit=1, **ask)
    assert [(c.suite, c.method) for c in third] == [
        ("agree", "causal"),
        ("agree", "mlm"),
        ("nano", "causal"),
    ]
    assert third.cells[0] == first.cells[0]


@pytest.mark.long
def test_other_weights_or_another_configuration_are_another_checkpoint(
    make_checkpoint: Make, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One folder never mixes checkpoints; a configuration that changes scores changes the key."""
    out, folder = tmp_path / "run", shutil.copytree(make_checkpoint(), tmp_path / "model")
    [[first]] = score(folder, str(suite), out=out, device="cpu")
    with pytest.raises(runs.store.RunError, match="another checkpoint"):
        score(make_checkpoint(seed=1), str(suite), out=out, device="cpu")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    [[second]] = score(folder, str(suite), out=out, device="cpu")
    assert second.key != first.key and second.digest != first.digest
    monkeypatch.chdir(tmp_path)
    places = {
        Path(score(m, str(suite), device="cpu")[0].path) for m in (folder, make_checkpoint(seed=1))
    }
    assert len(places) == 2 and {place.parent.name for place in places} == {"reports"}


# ---- several methods


def scores(run_: object, method: str) -> np.ndarray:
    [cell] = [cell for cell in run_ if cell.method == method]
    return np.array([p.scores for p in read_rows(run_.path, cell)])


@pytest.mark.long
def test_several_methods_in_one_call_share_their_work_and_give_what_each_gives_alone(
    make_checkpoint: Make, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, spent, alone = count_work(monkeypatch), {}, {}
    names = ["causal", "mlm", "mlm-l2r", "mntp", "fused"]
    for name in names:
        before = work.nodes
        [alone[name]] = score(
            make_checkpoint(), str(suite), methods=name, out=tmp_path / name, device="cpu"
        )
        spent[name] = work.nodes - before
    before, calls = work.nodes, work.calls
    [together] = score(
        make_checkpoint(), str(suite), methods=names, out=tmp_path / "all", device="cpu"
    )
    for name in names:
        assert np.abs(scores(together, name) - scores(alone[name], name)).max() <= 1e-5
        assert next(c for c in together if c.method == name).key == alone[name].cells[0].key
    assert work.calls == calls + 1
    # mntp hides what mlm hides and fused is causal + mntp, so that none of their rows is new
    # (batches re-read shared prefixes at their borders, hence the small allowance).
    assert work.nodes - before <= 1.02 * (spent["causal"] + spent["mlm"] + spent["mlm-l2r"])
    assert (
        spent["fused"] <= 1.02 * (spent["causal"] + spent["mntp"]) and spent["mntp"] == spent["mlm"]
    )


class Killed(BaseException):
    pass


@pytest.mark.long
@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("causal,mlm", "causal"),
        ("causal", "causal,mlm"),
        ("mlm", "mlm,causal"),
        ("mlm,causal", "mlm"),
    ],
)
def test_killed_and_repeated_with_other_methods_no_item_is_lost(
    make_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, then: str
) -> None:
    """Chunks of masked methods are smaller: one that was stored under other company holds other
    items.
    """
    rows = [{"good": f"the {a} {n} sleeps {i}", "bad": f"the {a} {n} sleep {i}"}
            for i, a, n in np.ndindex(30, 4, 5)]  # fmt: skip
    suite, ask = (
        write_pairs(tmp_path / "many.csv", rows),
        {"out": tmp_path / "run", "device": "cpu"},
    )
    put = runs.RunWriter.save_chunk

    def put_and_die(self: runs.RunWriter, *args: object) -> None:
        put(self, *args)
        if args[1] == first.split(",")[-1]:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(runs.RunWriter, "save_chunk", put_and_die)
        score(make_checkpoint(), str(suite), methods=first.split(","), **ask)
    [run_] = score(make_checkpoint(), str(suite), methods=then.split(","), **ask)
    expected = [item.id for item in loader.load_suite(str(suite)).items]
    for cell in run_:
        assert cell.summary.headline.n == len(rows)
        assert [p.id for p in read_rows(run_.path, cell)] == expected


# ---- sweeps


@pytest.fixture
def sweep(make_checkpoint: Make, tmp_path: Path) -> Path:
    """Three milestones, the second of which holds the weights of the first."""
    for name, seed in (("chck_10M", 1), ("chck_2M", 0), ("chck_1M", 0)):
        shutil.copytree(make_checkpoint(seed=seed), tmp_path / "sweep" / name)
    return tmp_path / "sweep"


@pytest.mark.long
def test_a_folder_of_checkpoints_is_scored_in_order_each_loaded_once_and_twins_are_named(
    sweep: Path, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, original = [], pretrained.load_checked_model
    monkeypatch.setattr(
        pretrained,
        "load_checked_model",
        lambda folder, *a: loaded.append(folder.name) or original(folder, *a),
    )
    found = score(
        sweep,
        [str(suite), "nano"],
        methods=["causal", "mlm"],
        limit=2,
        out=tmp_path / "out",
        device="cpu",
    )
    order = ["chck_1M", "chck_2M", "chck_10M"]
    assert loaded == order and [r.manifest.model["name"] for r in found] == order
    assert [Path(r.path).parent for r in found] == [tmp_path / "out"] * 3 and len(
        {r.path for r in found}
    ) == 3
    assert all(
        Path(r.path).name == f"{n}-{r.manifest.model['weights'][:8]}"
        for n, r in zip(order, found, strict=True)
    )
    named = [
        [any("/chck_1M: this is not" in note for note in cell.summary.notes) for cell in r]
        for r in found
    ]
    assert named == [[False] * 4, [True] * 4, [False] * 4]
    assert found[0].cells[0].digest == found[1].cells[0].digest != found[2].cells[0].digest


@pytest.mark.long
def test_one_broken_checkpoint_does_not_cost_the_others(
    sweep: Path, suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = sweep / "chck_2M" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(
        IncompleteError, match=r"1 of 3 checkpoints were not scored(.|\n)*chck_2M"
    ) as caught:
        score(sweep, str(suite), out=tmp_path / "out", device="cpu")
    assert caught.value.exit_code == 5
    assert [r.manifest.model["name"] for r in caught.value.runs] == ["chck_1M", "chck_10M"]
    assert (
        run(
            [
                "score",
                "--model",
                str(sweep),
                "--suite",
                str(suite),
                "--out",
                str(tmp_path / "out"),
                "--csv",
            ]
        )
        == 5
    )
    shown = capsys.readouterr()
    assert "chck_1M" in shown.out and "chck_10M" in shown.out and "chck_2M" not in shown.out
    assert (
        "chck_2M" in shown.err
        and "cannot load the weights" in shown.err
        and "Traceback" not in shown.err
    )


def test_a_single_broken_checkpoint_is_its_own_error(
    sweep: Path, suite: Path, tmp_path: Path
) -> None:
    (sweep / "chck_2M" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        score(sweep / "chck_2M", str(suite), out=tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_what_strikes_every_checkpoint_is_raised_once_and_as_itself(
    sweep: Path, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, original = [], pretrained.load_checked_model
    monkeypatch.setattr(
        pretrained,
        "load_checked_model",
        lambda folder, *a: loaded.append(folder.name) or original(folder, *a),
    )
    for wrong in (
        {"methods": "mlmm"},
        {"compat": "lm-evil"},
        {"ties": "fair"},
        {"precision": "enough"},
    ):
        with pytest.raises(UsageError):
            score(sweep, str(suite), out=tmp_path / "out", **wrong)
    assert loaded == []
    with pytest.raises(DataError, match="cannot be read"):
        score(sweep, str(tmp_path / "absent.csv"), out=tmp_path / "out", device="cpu")
    assert loaded == ["chck_1M"] and not (tmp_path / "out").exists()


@pytest.mark.long
def test_a_method_that_does_not_fit_is_refused_before_any_data_is_looked_for(
    make_checkpoint: Make,
) -> None:
    with pytest.raises(MethodNotSupported, match="cannot be scored with 'mlm'"):
        score(make_checkpoint("causal", mask=False), "absent.csv", methods="mlm", device="cpu")
    with pytest.raises(MethodNotSupported, match="does not run with causal attention"):
        score(make_checkpoint("masked"), "absent.csv", methods=["mlm", "causal"], device="cpu")
