"""minicons as an engine: its numbers are ours under every convention that both can follow, else it
is refused.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from peer_helpers import sum_logprobs
from prediction_rows import predict_rows, read_rows, rows_per_method
from tiny_models import WORDS, build_model, train_tokenizer

from antlm_bench.checkpoints import OpenOptions
from antlm_bench.checkpoints.opening import open_minicons_checkpoint
from antlm_bench.errors import (
    BenchError,
    CheckpointError,
    DataError,
    MethodNotSupported,
    UsageError,
)
from antlm_bench.scoring.methods import METHODS, resolve_method
from antlm_bench.types import Item, Option

pytestmark = pytest.mark.filterwarnings("ignore")  # the peers' own
LLAMA, GPT2, BERT, ROBERTA = (
    "LlamaForCausalLM",
    "GPT2LMHeadModel",
    "BertForMaskedLM",
    "RobertaForMaskedLM",
)
MORE = {GPT2: {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}}
TEXTS = [
    *(" ".join(WORDS[i : i + 2 + i % 4]) for i in range(0, 30, 3)),
    'She said "no".',
    "naïve café ☕",
    "unbelievably antidisestablishmentarian",
]
STARTS = [text.find(" ") for text in TEXTS]
SPANS = [
    None if start < 0 else (start, len(text)) for text, start in zip(TEXTS, STARTS, strict=True)
]


def foreign(folder, name, spans=None, texts=TEXTS, **options):
    model = open_minicons_checkpoint(str(folder), OpenOptions(device="cpu", **options))
    items = [
        Item(str(i), (Option(t, None if spans is None else spans[i]),), 0)
        for i, t in enumerate(texts)
    ]
    return rows_per_method(model.predict(items, [resolve_method(name, model)]))[0]


def close(predictions, expected):
    return np.abs(np.array([p.scores[0] for p in predictions]) - np.array(expected)).max() <= 1e-4


@pytest.mark.long
@pytest.mark.parametrize("adds", [True, False], ids=["with BOS", "without BOS"])
@pytest.mark.parametrize("architecture", [LLAMA, GPT2])
@pytest.mark.parametrize("bos", ["auto", "never", "tokenizer"])
def test_causal_scores_are_ours_under_every_bos_policy(make_checkpoint, architecture, adds, bos):
    folder = make_checkpoint(
        "causal", adds=adds, architecture=architecture, **MORE.get(architecture, {})
    )
    for spans in (None, SPANS):
        assert close(
            foreign(folder, "causal", spans, bos=bos),
            sum_logprobs(folder, TEXTS, "causal", spans, bos=bos),
        )


@pytest.mark.long
@pytest.mark.parametrize("adds", [True, False], ids=["with CLS", "without CLS"])
@pytest.mark.parametrize("architecture", [BERT, ROBERTA])
@pytest.mark.parametrize("name", ["mlm", "mlm-l2r"])
def test_masked_scores_are_ours(make_checkpoint, architecture, adds, name):
    folder = make_checkpoint("masked", adds=adds, architecture=architecture)
    for bos, spans in (("auto", None), ("auto", SPANS), ("never", SPANS), ("tokenizer", None)):
        assert close(
            foreign(folder, name, spans, bos=bos), sum_logprobs(folder, TEXTS, name, spans, bos=bos)
        )


@pytest.mark.long
def test_a_span_that_ends_before_its_text_counts_the_tokens_inside(make_checkpoint):
    texts, spans = ["the old cat sleeps near the house"], [(3, 11)]
    for kind, name in (("causal", "causal"), ("masked", "mlm")):
        folder = make_checkpoint(kind)
        found = foreign(folder, name, spans, texts)
        assert close(found, sum_logprobs(folder, texts, name, spans)) and 0 < found[0].tokens[0] < 7
        assert found[0].characters == (8,)


@pytest.mark.long
def test_a_bos_that_the_tokenizer_adds_is_not_doubled(make_checkpoint):
    """`always` where the tokenizer has one: minicons' own bos_token=True would put a second one,
    and score it.
    """
    folder = make_checkpoint("causal", adds=True)
    assert close(
        foreign(folder, "causal", bos="always"), sum_logprobs(folder, TEXTS, "causal", bos="auto")
    )


def test_tokens_and_flags_are_ours_too(make_checkpoint):
    from antlm_bench.checkpoints import open_checkpoint

    folder, options = make_checkpoint("causal"), OpenOptions(device="cpu", max_length=12)
    items = [
        Item("same", (Option("the cat"), Option("the cat")), 0),
        Item("blind", (Option("the cat sleeps", (7, 14)), Option("a dog sleeps", (5, 12))), 1),
        Item("long", (Option("the cat"), Option(" ".join(WORDS))), 0, {"paradigm": "x"}),
    ]
    one, other = (
        open_checkpoint(str(folder), options),
        open_minicons_checkpoint(str(folder), options),
    )
    [expected], [found] = (
        predict_rows(one, items, [METHODS["causal"]]),
        rows_per_method(other.predict(items, [METHODS["causal"]])),
    )
    for a, b in zip(expected, found, strict=True):
        assert (a.id, a.gold, a.tokens, a.characters, a.labels, a.flags) == (
            b.id, b.gold, b.tokens, b.characters, b.labels, b.flags
        )  # fmt: skip
        assert a.scores == pytest.approx(b.scores, abs=1e-4)
    assert [p.flags for p in found] == [("identical",), (), ("too-long",)]


@pytest.mark.long
def test_without_a_pad_or_eos_token_no_row_is_added_to_the_softmax(tmp_path):
    tokenizer = train_tokenizer("causal", True)
    tokenizer.pad_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    build_model("causal", 0).save_pretrained(tmp_path)
    assert close(foreign(tmp_path, "causal"), sum_logprobs(tmp_path, TEXTS, "causal"))


@pytest.mark.long
def test_our_hybrid_architectures_are_read_the_way_they_were_saved(tmp_path):
    from ltg_models import SIZES

    from antlm_bench.architectures import gpt_bert

    settings = SIZES | {"vocab_size": 400, "max_position_embeddings": 64}
    for kind, name, suffix in (
        ("causal", "causal", "ForCausalLM"),
        ("masked", "mlm", "ForMaskedLM"),
    ):
        getattr(gpt_bert, "GptBert" + suffix)(gpt_bert.GptBertConfig(**settings)).save_pretrained(
            tmp_path / kind
        )
        train_tokenizer(kind, True).save_pretrained(tmp_path / kind)
        assert close(foreign(tmp_path / kind, name), sum_logprobs(tmp_path / kind, TEXTS, name))


@pytest.mark.long
def test_a_checkpoint_in_its_authors_layout_is_converted_first(tmp_path):
    from test_conversion import LTG, ltg_layout, saved, weights_for

    folder = saved(tmp_path / "public", ltg_layout(weights_for("")[0]), LTG)
    assert close(foreign(folder, "mlm", texts=TEXTS[:3]), sum_logprobs(folder, TEXTS[:3], "mlm"))


@pytest.mark.long
def test_a_model_that_our_engine_cannot_run_is_scored(make_checkpoint, monkeypatch):
    from antlm_bench.checkpoints import open_checkpoint
    from antlm_bench.scoring.engine import Engine

    def cannot(*_args, **_options):
        raise CheckpointError("has no body apart from its LM head")

    folder = make_checkpoint("causal")
    expected = sum_logprobs(folder, TEXTS, "causal")
    monkeypatch.setattr(Engine, "_forward_logprobs", cannot)
    with pytest.raises(CheckpointError):
        open_checkpoint(str(folder))
    assert close(foreign(folder, "causal"), expected)


# ---- refusals
# --------------------------------------------------------------------------------------------------


def test_attentions_that_only_our_engine_turns_are_refused(make_checkpoint):
    """A causal checkpoint with a mask token: ours also reads it with full attention, minicons
    passes no such mask.
    """
    model = open_minicons_checkpoint(str(make_checkpoint("causal")), OpenOptions(device="cpu"))
    assert model.methods == ["causal"]
    with pytest.raises(MethodNotSupported, match="does not run with full attention"):
        resolve_method("mlm", model)


def test_methods_that_minicons_does_not_know_are_refused(make_checkpoint):
    model = open_minicons_checkpoint(str(make_checkpoint("masked")), OpenOptions(device="cpu"))
    assert model.methods == ["mlm", "mlm-l2r"]
    with pytest.raises(MethodNotSupported, match="mntp"):
        rows_per_method(model.predict([Item("0", (Option("the cat"),), 0)], [METHODS["mntp"]]))


def test_a_text_of_which_nothing_can_be_scored_is_named(make_checkpoint):
    folder = make_checkpoint("causal", adds=False)
    with pytest.raises(DataError, match=r"item 0"):
        foreign(folder, "causal", bos="never", texts=["the"])


def test_minicons_refuses_a_special_token_inside_a_masked_text(
    make_checkpoint,
):
    with pytest.raises(CheckpointError, match="does not score every token"):
        foreign(make_checkpoint("masked"), "mlm", texts=["the cat </s> sleeps"])


@pytest.mark.long
def test_a_text_that_a_spelled_bos_changes_is_refused(tmp_path):
    """A tokenizer that marks a text's first word alone: after a spelled <s>, the text is no
    beginning any more.
    """
    from tokenizers import pre_tokenizers

    tokenizer = train_tokenizer("causal", adds=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.save_pretrained(tmp_path)
    build_model("causal", 0).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="differently between special tokens"):
        foreign(tmp_path, "causal", texts=["the cat sleeps"])
    assert close(
        foreign(tmp_path, "causal", texts=["the cat sleeps"], bos="tokenizer"),
        sum_logprobs(tmp_path, ["the cat sleeps"], "causal", bos="tokenizer"),
    )


def test_the_minicons_bundle_decides_by_the_mean(make_checkpoint, tmp_path):
    from antlm_bench import score

    (tmp_path / "x.csv").write_text(
        "good,bad\nthe cat sleeps near the old house,a dog\nno,every boy has seen the girl\n"
    )
    folder = make_checkpoint("causal")
    [run] = score(
        folder,
        tmp_path / "x.csv",
        out=tmp_path / "run",
        device="cpu",
        engine="minicons",
        compat="minicons",
    )
    for p in read_rows(run.path, run.cells[0]):
        assert p.pred == int(
            np.argmax([total / count for total, count in zip(p.scores, p.tokens, strict=True)])
        )


def test_nan_is_an_error(make_checkpoint, tmp_path):
    import torch

    model = build_model("causal", 0)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path)
    train_tokenizer("causal", True).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="NaN"):
        foreign(tmp_path, "causal")


# ---- the command
# -------------------------------------------------------------------------------------------------


@pytest.fixture
def suite(tmp_path) -> Path:
    path = tmp_path / "agree.csv"
    path.write_text(
        "good,bad\nthe cat sleeps,the cat sleep\nthe dogs see,the dogs sees\nno boy,no boys ever\n"
    )
    return path


@pytest.mark.long
def test_a_run_is_the_same_but_for_the_engine_in_its_settings(make_checkpoint, suite, tmp_path):
    from antlm_bench import score

    folder = make_checkpoint("masked")
    native, borrowed = (
        score(folder, suite, out=tmp_path / engine, device="cpu", engine=engine, methods="mlm")[0]
        for engine in ("native", "minicons")
    )
    [a], [b] = native, borrowed
    assert set(b.settings) - set(a.settings) == {"engine"} and b.settings["engine"].startswith(
        "minicons 0."
    )
    assert {k: v for k, v in b.settings.items() if k != "engine"} == dict(
        a.settings
    ) and a.key != b.key
    assert b.summary.headline == a.summary.headline
    for p, q in zip(read_rows(native.path, a), read_rows(borrowed.path, b), strict=True):
        assert p.scores == pytest.approx(q.scores, abs=1e-4) and (p.tokens, p.flags) == (
            q.tokens,
            q.flags,
        )
    [again] = score(
        folder, suite, out=tmp_path / "minicons", device="cpu", engine="minicons", methods="mlm"
    )
    assert again.cells == borrowed.cells


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"engine": "mini"}, UsageError),
        ({"engine": "minicons", "precision": "adaptive"}, UsageError),
        ({"engine": "minicons", "dtype": "bfloat16"}, UsageError),
        ({"engine": "minicons", "batch_tokens": 64}, UsageError),
        ({"engine": "minicons", "methods": "mntp"}, MethodNotSupported),
        ({"engine": "minicons", "methods": ["causal", "fused"]}, MethodNotSupported),
    ],
)
def test_minicons_limits_are_refused_before_opening(suite, tmp_path, options, error):
    from antlm_bench import score

    with pytest.raises(error) as caught:
        score("no-such-folder-anywhere", suite, out=tmp_path / "run", **options)
    assert (
        isinstance(caught.value, BenchError)
        and caught.value.location.startswith("--")
        and caught.value.hint
    )
