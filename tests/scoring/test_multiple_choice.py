"""Items to predictions, by hand: sums, counts, flags, contexts, chunks; and adaptive precision
against its promise.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lookup_model import LookupModel
from prediction_rows import predict_rows, rows_per_method

from antlm_bench.errors import DataError
from antlm_bench.scoring import adaptive, conventions, multiple_choice
from antlm_bench.scoring.methods import METHODS
from antlm_bench.types import Item, Option

CAUSAL = [METHODS["causal"]]
WORDS = {"the": -1.0, "a": -2.0, "cat": -3.0, "cats": -5.0, "huh": -9.0}


def pair(good: str, bad: str, gold: float = 0, spans=(None, None)) -> Item:
    return Item("x_0", (Option(good, spans[0]), Option(bad, spans[1])), gold, {"paradigm": "x"})


def ask(item: Item, **options):
    bos = options.pop("bos", True)
    return predict_rows(LookupModel(WORDS, bos), [item], CAUSAL, **options)[0][0]


def test_a_score_is_a_sum_and_carries_its_counts():
    found = ask(pair("the cat", "the cats"))
    assert found.scores == (-4.0, -6.0) and found.pred == 0 and found.gold == 0
    assert found.tokens == (2, 2) and found.characters == (7, 8) and found.flags == ()
    assert found.labels == {"paradigm": "x"} and found.id == "x_0"


def test_reduction_decides_the_choice_but_not_what_is_stored():
    longer = pair("the cat cat", "a cats")  # sums -7 and -7.0: a tie; means -2.3 and -3.5
    assert ask(longer).scores == ask(longer, reduction="per-token").scores == (-7.0, -7.0)
    worse = pair("cats", "the the the a a")  # sum -5 against -7, mean -5 against -1.4
    assert (ask(worse).pred, ask(worse, reduction="per-token").pred) == (0, 1)


def test_a_difference_that_no_scored_token_sees_is_flagged():
    assert ask(pair("the cat", "a cat"), bos=False).flags == ("blind",)
    assert ask(pair("the cat", "a cat"), bos=True).flags == ()


def test_options_that_differ_in_context_only_are_not_blind():
    swapped = pair("the cat", "a cat", spans=((3, 7), (1, 5)))
    assert ask(swapped).flags == ()


def test_identical_unknown_and_too_long_items_are_flagged():
    assert ask(pair("the cat", "the cat")).flags == ("identical",)
    assert ask(pair("the huh", "the cat")).flags == ("unk",)
    overlong = ask(pair("the cat " * 5, "the cat"))
    assert overlong.flags == ("too-long",) and overlong.tokens == (0, 0)


def test_an_option_without_a_scored_token_names_its_item():
    with pytest.raises(DataError, match=r"item x_0: no token of option 2"):
        ask(pair("the cat", "cat"), bos=False)


def test_2024_masked_texts_get_a_stand_in_context_and_two_spaces():
    masked = conventions.PEER_CONVENTIONS["babylm-2024"].for_method(METHODS["mlm"])
    [moved] = conventions.apply_conventions([pair("the cat", "a cat")], masked, LookupModel(WORDS))
    assert [o.text for o in moved.options] == ["None  the cat", "None  a cat"]
    assert [o.text[slice(*o.span)] for o in moved.options] == ["  the cat", "  a cat"]
    assert [o.length for o in moved.options] == [
        7,
        5,
    ]  # the added spaces are no characters of the option
    spanned = pair("the cat", "the cats", spans=((3, 7), (3, 8)))
    [moved] = conventions.apply_conventions([spanned], masked, LookupModel(WORDS))
    assert [o.text for o in moved.options] == ["the  cat", "the  cats"]
    assert [o.text[slice(*o.span)] for o in moved.options] == ["  cat", "  cats"]
    assert [o.length for o in moved.options] == [4, 5]


def test_words_within_texts_keep_their_texts_under_every_bundle():
    asked = pair("the cat", "the cats", spans=((3, 7), (0, 3)))
    for peer in conventions.PEER_CONVENTIONS.values():
        for method in METHODS:
            policy = peer.for_method(method).for_suite("sum", scores_words=True)
            assert conventions.apply_conventions([asked], policy, LookupModel(WORDS)) == [asked]
            assert policy.bos_before_context == ""


@pytest.mark.parametrize("peer", ["lm-eval", "babylm-2024"])
def test_a_delimiter_precedes_sentences_only_and_is_scored(peer):
    causal = conventions.PEER_CONVENTIONS[peer].for_method(METHODS["causal"])
    spanned = pair("the cat", "the cats", spans=((3, 7), (3, 8)))
    sentences, behind = conventions.apply_conventions(
        [pair("the cat", "a cat"), spanned], causal, LookupModel(WORDS)
    )
    assert [(o.text, o.span, o.length) for o in sentences.options] == [
        (" the cat", None, 7),
        (" a cat", None, 5),
    ]
    assert behind == spanned
    requests = [pair(" the cat", " a cat")]
    assert (
        conventions.apply_conventions(
            requests, causal.for_suite("sum", has_delimiters=True), LookupModel(WORDS)
        )
        == requests
    )


def test_chunk_sizes_depend_on_the_methods_only():
    items = [pair("the cat", "a cat")] * 5000
    assert [len(c) for c in multiple_choice.iter_chunks(items, CAUSAL)] == [4096, 904]
    assert {len(c) for c in multiple_choice.iter_chunks(items, [METHODS["mlm"]])} == {
        512,
        5000 % 512,
    }


sentences = st.lists(st.sampled_from(["the", "a", "cat", "cats"]), min_size=1, max_size=7).map(
    " ".join
)
pairs = st.lists(st.tuples(sentences, sentences), min_size=1, max_size=60)


@pytest.mark.long
@settings(max_examples=200, deadline=None)
@given(pairs=pairs, noise=st.floats(0, 3))
def test_adaptive_decisions_are_the_exact_ones_whatever_the_noise(pairs, noise):
    """Here every item is in the calibration sample, so the measured bound covers every error there
    is.
    """
    items = [Item(str(n), (Option(a), Option(b)), 0) for n, (a, b) in enumerate(pairs)]
    exact, quick = LookupModel(WORDS), LookupModel(WORDS, noise=noise)
    both = adaptive.AdaptiveScorer(quick, exact).calibrate(items, CAUSAL)
    found, truth = (
        rows_per_method(both.predict(items, CAUSAL))[0],
        predict_rows(exact, items, CAUSAL)[0],
    )
    for adapted, right in zip(found, truth, strict=True):
        tied = right.scores[0] == right.scores[1]
        assert adapted.pred == right.pred or (tied and "float32" not in adapted.flags)
        if "float32" in adapted.flags:
            assert adapted.scores == right.scores
        assert not tied or "float32" in adapted.flags  # a tie lies within any bound


def test_adaptive_rescoring_raises_a_bound_that_is_too_small():
    exact = {"the": -1.0, "a": -2.0, "some": -1.9, "no": -3.1, "cat": -3.0}
    quick = exact | {"a": -1.5}  # off by half a nat
    items = [
        pair("the cat", f"{word} cat") for word in ("a", "some", "no")
    ]  # quick margins 0.5, 0.9, 2.1

    def rescored(bound: float) -> list[bool]:
        model = adaptive.AdaptiveScorer(LookupModel(quick), LookupModel(exact), bounds=(bound,))
        return ["float32" in p.flags for p in rows_per_method(model.predict(items, CAUSAL))[0]]

    assert rescored(0.1) == [False, False, False]
    assert rescored(0.6) == [
        True,
        True,
        False,
    ]  # the first error found is 0.5, so the bound becomes 1.0


def test_graded_items_are_always_scored_exactly():
    [found] = rows_per_method(
        adaptive.AdaptiveScorer(
            LookupModel(WORDS, noise=0.1), LookupModel(WORDS), bounds=(0.0,)
        ).predict([pair("the cat", "a cats", gold=0.7)], CAUSAL)
    )[0]
    assert found.flags == ("float32",) and found.scores == (-4.0, -7.0)
