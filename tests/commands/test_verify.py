"""`verify` from argv to an exit code: agreement is shown, a planted disagreement is found and
named.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from documented_pages import read_blocks
from score_helpers import make_agreement_rows, write_pairs, write_sentence_pairs

from antlm_bench.checkpoints import OpenOptions
from antlm_bench.cli.app import run
from antlm_bench.commands.verify import sample_evenly, verify
from antlm_bench.errors import (
    CheckpointError,
    DataError,
    EngineDisagreement,
    MethodNotSupported,
    UsageError,
)
from antlm_bench.scoring import peers
from antlm_bench.types import Item, Option

OWN = """
from transformers import GPT2Config, GPT2LMHeadModel


class OwnConfig(GPT2Config):
    model_type = "own-of-a-test"


class OwnForCausalLM(GPT2LMHeadModel):
    config_class = OwnConfig
"""

pytestmark = pytest.mark.filterwarnings("ignore")  # the peers' own
DOC = Path(__file__).parents[2] / "docs" / "how-to" / "verify.md"


@pytest.fixture
def suite(tmp_path) -> Path:
    return write_pairs(tmp_path / "agree.csv", make_agreement_rows())


@pytest.fixture
def in_context(tmp_path, monkeypatch) -> Path:
    """A suite of options after contexts, as EWoK's: the option begins with its space."""
    nouns = ["the old cat", "who has seen the dogs near", "every boy"]
    rows = [(text, " sleeps", " sees the house") for text in nouns]
    return write_contexts(tmp_path, monkeypatch, rows)


def write_contexts(tmp_path: Path, monkeypatch, texts: list[tuple[str, str, str]]) -> Path:
    """Write a suite of (context, good option, bad option)."""
    rows = [
        {"context": context, "good": good, "bad": bad, "uid": context[:3]}
        for context, good, bad in texts
    ]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("ANTLM_BENCH_DATA", str(tmp_path / "data"))
    path = tmp_path / "contexts.toml"
    path.write_text("""
kind = "suite"
name = "contexts"
version = "1"
title = "Options in contexts"
licence = "CC0"
citation = "me"
groups = ["start"]
macro = ["start"]
[item]
options = [
  { context = "{context}", scored = "{good}" },
  { context = "{context}", scored = "{bad}" },
]
[labels]
start = "{uid}"
[data]
where = ["{file}"]
[data.files]
"rows.jsonl" = {}
""")
    return path


def plant(monkeypatch, change):
    """minicons answers `change(scores)` instead of its scores."""
    asked = peers.MiniconsScorer.scores
    monkeypatch.setattr(peers.MiniconsScorer, "scores", lambda *args: change(asked(*args)))


# ---- agreement


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "adds", "architecture", "methods", "expected_peers"),
    [
        ("causal", True, "LlamaForCausalLM", (), {"minicons", "lm-eval"}),
        ("causal", False, "GPT2LMHeadModel", ("causal",), {"minicons", "lm-eval"}),
        ("masked", True, "BertForMaskedLM", ("mlm", "mlm-l2r"), {"minicons"}),
        ("masked", False, "RobertaForMaskedLM", (), {"minicons"}),
    ],
)
def test_peers_that_load_the_folder_themselves_agree(
    make_checkpoint, suite, kind, adds, architecture, methods, expected_peers
):
    found = verify(
        make_checkpoint(kind, adds=adds, architecture=architecture),
        str(suite),
        limit=15,
        methods=methods,
    )
    assert {a.peer.split()[0] for a in found.agreements} == expected_peers and not found.refused
    assert {a.method for a in found.agreements} == set(
        methods or (["causal"] if kind == "causal" else ["mlm"])
    )
    for a in found.agreements:
        assert (a.suite, a.items, a.options) == ("agree", 15, 30)
        assert 0 <= a.mean <= a.largest <= 1e-4 and not a.flips and a.is_within(1e-3)
    found.raise_on_disagreement()


@pytest.mark.long
@pytest.mark.parametrize(("kind", "adds"), [("causal", True), ("causal", False), ("masked", True)])
def test_options_after_contexts_agree(make_checkpoint, in_context, kind, adds):
    """lm-eval reads no BOS before a context where the tokenizer adds none: it is spelled, and the
    numbers are ours.
    """
    found = verify(make_checkpoint(kind, adds=adds), str(in_context))
    assert len(found.agreements) == (2 if kind == "causal" else 1)
    for a in found.agreements:
        assert a.items == 3 and a.largest <= 1e-4 and a.other_tokens.items == 0
        assert any("before contexts" in line or "characters" in line for line in a.aligned)


@pytest.mark.long
def test_lm_eval_s_space_before_an_option_is_told_apart(make_checkpoint, tmp_path, monkeypatch):
    """lm-eval scores the token of a space that stands alone. Its score is lower by that token."""
    folder = make_checkpoint("causal")
    rows = [("the cat ", "zx", "qx"), ("every boy ", "sleeps", "sees")]
    path = write_contexts(tmp_path, monkeypatch, rows)
    agreement = verify(folder, str(path)).agreements[1]
    assert agreement.largest <= 1e-4 and agreement.is_within(1e-3)
    other = agreement.other_tokens
    assert (other.items, other.worst) == (1, "the_0")
    assert other.reasons == (("it scores the space before an option as a token of the option", 1),)
    space = token_logprob(folder, ["<s>", "\u0120the", "\u0120cat"], "\u0120")
    assert other.largest == pytest.approx(-space, abs=1e-4)


@pytest.mark.long
def test_options_to_which_lm_eval_leaves_no_token(make_checkpoint, tmp_path, monkeypatch, capsys):
    """The context alone has as many tokens as the whole text, of which the last is one token."""
    path = write_contexts(tmp_path, monkeypatch, [("the do", "gs", "g"), ("a", " cat", " dog")])
    folder = make_checkpoint("causal")
    agreement = verify(folder, str(path)).agreements[1]
    other = agreement.other_tokens
    assert agreement.is_within(1e-3) and agreement.items == 2
    assert (other.items, other.largest, other.worst) == (1, None, "")
    assert [reason for reason, _ in other.reasons] == [
        "it leaves no token to the option and cannot score it"
    ]
    assert run(["verify", "--model", str(folder), "--suite", str(path), "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["tokens differ"] for row in rows] == ["0", "1"]


def token_logprob(folder: Path, context: list[str], token: str) -> float:
    """Return log P(token | context) of a causal checkpoint by transformers alone."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    *ids, target = tokenizer.convert_tokens_to_ids([*context, token])
    assert None not in ids and tokenizer.unk_token_id not in [*ids, target]
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([ids])).logits
    return float(logits[0, -1].log_softmax(-1)[target])


@pytest.mark.long
def test_a_tokenizer_that_adds_eos_is_told_of_minicons_rule(make_checkpoint, suite, tmp_path):
    from tokenizers import processors
    from transformers import AutoTokenizer

    folder = shutil.copytree(make_checkpoint("causal"), tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer.save_pretrained(folder)
    done = verify(str(folder), suite, options=OpenOptions(device="cpu"))
    told = {one.peer.partition(" ")[0]: " ".join(one.apart) for one in done.agreements}
    assert "tokenizer adds after a text, as we do under --compat minicons" in told["minicons"]


@pytest.mark.long
@pytest.mark.parametrize("bos", ["never", "tokenizer"])
def test_a_policy_that_lm_eval_does_not_have_is_compared_with_minicons_alone(
    make_checkpoint, suite, bos
):
    folder = make_checkpoint("causal", adds=False)
    found = verify(folder, str(suite), limit=5, options=OpenOptions(device="cpu", bos=bos))
    assert [a.peer.split()[0] for a in found.agreements] == ["minicons"] and found.agreements[
        0
    ].is_within(1e-4)
    [(peer, method, why)] = found.refused
    assert (peer, method) == ("lm-eval", "causal") and "BOS" in why


@pytest.mark.long
def test_our_own_architectures_are_known_to_the_peers(suite, tmp_path):
    from ltg_models import SIZES
    from tiny_models import train_tokenizer

    from antlm_bench.architectures import gpt_bert

    config = gpt_bert.GptBertConfig(**SIZES | {"vocab_size": 400, "max_position_embeddings": 64})
    gpt_bert.GptBertForCausalLM(config).save_pretrained(tmp_path / "gpt")
    train_tokenizer("causal", True).save_pretrained(tmp_path / "gpt")
    found = verify(tmp_path / "gpt", str(suite), limit=5)
    assert len(found.agreements) == 2 and all(a.is_within(1e-3) for a in found.agreements)


def test_the_sample_is_evenly_spaced():
    items = [Item(str(n), (Option("x"),), 0) for n in range(10)]
    assert [item.id for item in sample_evenly(items, 4)] == ["0", "2", "5", "7"]
    assert sample_evenly(items, 10) == sample_evenly(items, 99) == items


@pytest.mark.long
def test_items_that_do_not_fit_are_left_out_and_counted(make_checkpoint, tmp_path):
    suite = write_sentence_pairs(
        tmp_path / "x.csv",
        ("the cat", "a cat"),
        ("the old cat sees the dogs near a house", "the cat"),
    )
    found = verify(make_checkpoint(), str(suite), options=OpenOptions(device="cpu", max_length=6))
    assert all((a.items, a.left_out) == (1, 1) for a in found.agreements)
    with pytest.raises(DataError, match="none of 2 items"):
        verify(make_checkpoint(), str(suite), options=OpenOptions(device="cpu", max_length=1))


@pytest.mark.long
def test_a_checkpoint_s_own_python_is_run_by_all_or_none(
    make_checkpoint, suite, tmp_path, monkeypatch, capsys
):
    """Peers are told too: minicons would else ask on a terminal that nobody looks at."""
    import shutil

    folder = tmp_path / "own"
    shutil.copytree(make_checkpoint("causal", architecture="GPT2LMHeadModel"), folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own-of-a-test", "architectures": ["OwnForCausalLM"]}
    config["auto_map"] = {
        "AutoConfig": "own.OwnConfig",
        "AutoModelForCausalLM": "own.OwnForCausalLM",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(OWN)
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody asked on the terminal"))
    line = ["verify", "--model", str(folder), "--suite", str(suite), "--limit", "4"]
    assert run([*line, "--trust-remote-code"]) == 0
    assert capsys.readouterr().out.count("agrees") == 2


@pytest.mark.long
def test_pickled_weights_are_opened_on_request_by_all(make_checkpoint, suite, tmp_path, capsys):
    import torch
    import transformers

    made = make_checkpoint()
    model = transformers.AutoModelForCausalLM.from_pretrained(made)
    model.config.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(made).save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    line = ["verify", "--model", str(tmp_path), "--suite", str(suite), "--limit", "4"]
    assert run(line) == 3 and "--allow-pickle" in capsys.readouterr().err
    assert run([*line, "--allow-pickle"]) == 0
    assert capsys.readouterr().out.count("agrees") == 2


@pytest.mark.long
def test_a_file_may_name_its_columns_in_its_own_way(make_checkpoint, suite, tmp_path, capsys):
    other = tmp_path / "other.csv"
    other.write_text("right,wrong\nthe cat sees a dog,the cat see a dog\n")
    line = ["verify", "--model", str(make_checkpoint()), "--suite", f"{other},nano", "--limit", "2"]
    assert run([*line, "--columns", "good=right,bad=wrong"]) == 0
    assert capsys.readouterr().out.count("agrees") == 4
    assert run(["verify", *line[1:3], "--suite", "nano", "--columns", "good=right"]) == 2


# ---- disagreement


@pytest.mark.long
def test_a_planted_disagreement_is_found_and_named(make_checkpoint, suite, monkeypatch, capsys):
    """minicons answers the first item's options the other way round: the flip has both margins, the
    exit code is 6.
    """
    folder = make_checkpoint()
    [honest, _] = verify(folder, str(suite), limit=4).agreements

    def swapped(scores):
        scores[0], scores[1] = scores[1], scores[0]
        return scores

    plant(monkeypatch, swapped)
    found = verify(folder, str(suite), limit=4)
    [bad, good] = found.agreements
    [flip] = bad.flips
    assert (flip.id, flip.tie) == (bad.worst, False) == ("number_0", False) and {
        flip.ours,
        flip.theirs,
    } == {0, 1}
    assert flip.margin == pytest.approx(flip.their_margin, abs=1e-4) and flip.margin > 0.01
    assert bad.largest == pytest.approx(flip.margin, abs=1e-4) and bad.mean == pytest.approx(
        flip.margin / 4, abs=1e-4
    )
    assert honest.is_within(1e-3) and good.is_within(1e-3) and not bad.is_within(1e-3)
    with pytest.raises(
        EngineDisagreement,
        match=r"agree · causal: minicons .* prefers another option in 1 of 4 items",
    ):
        found.raise_on_disagreement()
    assert run(["verify", "--model", str(folder), "--suite", str(suite), "--limit", "4"]) == 1
    out = capsys.readouterr()
    assert (
        "number_0" in out.out
        and "differs" in out.out
        and "agrees" in out.out
        and "lm-eval" in out.out
    )
    assert out.err.startswith("error: ") and "by more than 0.001 nats" in out.err


@pytest.mark.long
def test_an_offset_is_a_difference_even_where_no_decision_moves(
    make_checkpoint, suite, monkeypatch
):
    """A second BOS, say, shifts all scores alike."""
    plant(monkeypatch, lambda scores: scores + 0.5)
    found = verify(make_checkpoint(), str(suite), limit=4)
    bad = found.agreements[0]
    assert bad.largest == pytest.approx(0.5, abs=1e-4) == bad.mean and not bad.flips
    with pytest.raises(EngineDisagreement, match="0 of 4 items"):
        found.raise_on_disagreement()
    assert (
        verify(make_checkpoint(), str(suite), limit=4, tolerance=0.6).raise_on_disagreement()
        is None
    )


@pytest.mark.long
def test_a_decision_between_equal_texts_may_fall_either_way(make_checkpoint, tmp_path, monkeypatch):
    suite = write_sentence_pairs(tmp_path / "twins.csv", ("the cat sleeps", "the cat sleeps"))
    plant(monkeypatch, lambda scores: scores + np.array([0.0, 1e-5]))
    found = verify(make_checkpoint(), str(suite))
    [flip] = found.agreements[0].flips
    assert flip.tie and flip.margin == 0
    found.raise_on_disagreement()


@pytest.mark.long
def test_scores_that_are_no_numbers_are_an_error(make_checkpoint, suite, monkeypatch):
    plant(monkeypatch, lambda scores: scores * np.nan)
    with pytest.raises(CheckpointError, match="not finite"):
        verify(make_checkpoint(), str(suite), limit=2)


# ---- refusals


@pytest.mark.parametrize("method", ["mntp", "fused"])
def test_what_no_peer_can_score_is_refused_before_anything_is_opened(method):
    with pytest.raises(MethodNotSupported, match="no peer"):
        verify("no-such-folder-anywhere", "no-such-suite", methods=method)


@pytest.mark.long
def test_the_other_attention_of_a_checkpoint_is_only_ours(make_checkpoint, suite):
    """A 4-D mask lets our engine read a causal checkpoint both ways; a peer reads it the one way it
    was saved.
    """
    with pytest.raises(MethodNotSupported, match="native attention only"):
        verify(make_checkpoint("causal"), str(suite), methods="mlm")
    found = verify(make_checkpoint("causal"), str(suite), methods=["causal", "mlm"], limit=2)
    assert {a.method for a in found.agreements} == {"causal"}
    assert [row[:2] for row in found.refused] == [("minicons", "mlm")]


def test_a_checkpoint_in_its_authors_layout_is_refused_because_a_peer_would_load_random_weights(
    suite, tmp_path
):
    from test_conversion import LTG, ltg_layout, saved, weights_for

    folder = saved(tmp_path / "public", ltg_layout(weights_for("")[0]), LTG)
    with pytest.raises(MethodNotSupported, match="authors' original layout"):
        verify(folder, str(suite), limit=2)


def test_bad_values_are_usage(make_checkpoint, suite):
    for more in (
        {"tolerance": 0.0},
        {"tolerance": float("nan")},
        {"limit": 0},
        {"methods": "mlmm"},
    ):
        with pytest.raises(UsageError):
            verify(make_checkpoint(), str(suite), **more)


def test_missing_data_is_said(make_checkpoint, tmp_path, capsys):
    line = ["verify", "--model", str(make_checkpoint()), "--suite", str(tmp_path / "none.csv")]
    assert run(line) == 3 and "none.csv" in capsys.readouterr().err


# ---- forms


@pytest.mark.long
def test_every_form_holds_the_same_numbers(make_checkpoint, suite, capsys):
    line = ["verify", "--model", str(make_checkpoint()), "--suite", str(suite), "--limit", "3"]
    shown = {}
    for form in ("json", "csv", "markdown"):
        assert run([*line, f"--{form}"]) == 0
        shown[form] = capsys.readouterr().out
    document = json.loads(shown["json"])
    rows = list(csv.DictReader(io.StringIO(shown["csv"])))
    assert len(rows) == len(document["agreements"]) == 2
    for row, made in zip(rows, document["agreements"], strict=True):
        assert (
            float(row["largest (nats)"]) == made["largest"]
            and row["peer"] == made["peer"]
            and made["holds"]
        )
        assert f"| {made['peer']} | agree | causal | 3 | 6 |" in shown["markdown"]
    assert run([*line, "--json", "--csv"]) == 2


@pytest.mark.long
def test_the_worked_example_of_the_document_runs(make_checkpoint, tmp_path, monkeypatch, capsys):
    blocks = [block.text for block in read_blocks(DOC.read_text(encoding="utf-8"))]
    pairs, line, shown = blocks[:3]
    monkeypatch.chdir(tmp_path)
    Path("pairs.csv").write_text(pairs, encoding="utf-8")
    words = [str(make_checkpoint()) if word == "CKPT" else word for word in shlex.split(line)[1:]]
    assert run(words) == 0
    out = capsys.readouterr().out
    numbers = r"\d\.\de[-+]\d\d"
    expected, found = (
        [re.sub(numbers, "N", " ".join(row.split())) for row in text.splitlines() if row.strip()]
        for text in (shown, out)
    )
    assert expected[0] == found[0] and expected[3:] and len(expected) == len(found)
    for a, b in zip(expected, found, strict=True):
        assert a.split(" N ")[0] == b.split(" N ")[0] or "─" in a
    assert (
        run([str(make_checkpoint()) if w == "CKPT" else w for w in shlex.split(blocks[3])[1:]]) == 0
    )
    assert (tmp_path / "run-minicons" / "run.json").is_file()
