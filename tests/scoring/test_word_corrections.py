"""Corrections of word probabilities: a model of three tokens by hand, plain loops, minicons."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from small_tokenizers import train_metaspace
from tiny_models import build_model, train_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from antlm_bench import Scorer, surprisal
from antlm_bench.errors import MethodNotSupported, UsageError
from antlm_bench.scoring import peers
from antlm_bench.scoring.word_corrections import (
    BOUNDARY_TARGET,
    CORRECTIONS,
    WordBorders,
    boundary_reads,
    build_token_sets,
    resolve_correction,
)
from antlm_bench.words import split_words

pytestmark = pytest.mark.filterwarnings("ignore")  # of the peers

TEXTS = [
    "the cat sees some dogs near the house.",
    "who never sleeps?",
    "unbelievably old boys see naive cats",
]

# A language of the words a, aa, aaa, ... over three tokens. Row: the previous token.
SPACE_A, A, EOS, BOS = 0, 1, 2, 3
NEXT = np.array([[0.3, 0.5, 0.2], [0.4, 0.35, 0.25], [0.0, 0.0, 1.0], [0.1, 0.7, 0.2]])
NEXT_WITHOUT_EOS = np.array([[0.4, 0.6, 0.0], [0.7, 0.3, 0.0], [0.0, 0.0, 1.0], [0.2, 0.8, 0.0]])


def word_probability(name: str, matrix: np.ndarray, context: list[int], word: list[int]) -> float:
    """P(word | context) by a correction: context and word are tokens, one character each."""
    correction = CORRECTIONS[name]
    tokens = context + word
    text = "".join(" a" if token == SPACE_A else "a" for token in tokens)
    offsets, end = [], 0
    for token in tokens:
        start, end = end, end + (2 if token == SPACE_A else 1)
        offsets.append((start, end))
    boundary = {SPACE_A} | ({EOS} if correction.counts_eos else set())
    sets = {BOUNDARY_TARGET: sorted(boundary), -2: [A, EOS]}
    previous = [BOS, *tokens]
    probability = np.prod(
        [matrix[previous[i], tokens[i]] for i in range(len(context), len(tokens))]
    )
    borders = WordBorders.from_offsets(text, offsets)
    is_marked = tokens[0] == SPACE_A
    for token, position, target, sign in boundary_reads(borders, correction, is_marked):
        if token >= len(context):
            probability *= matrix[previous[position], sets[target]].sum() ** sign
    return float(probability)


def sum_words(name: str, matrix: np.ndarray, context: list[int], first: int) -> float:
    return sum(word_probability(name, matrix, context, [first] + [A] * n) for n in range(120))


@pytest.mark.parametrize("name", ["word-boundary", "pimentel-meister"])
def test_words_and_the_end_of_the_text_sum_to_one(name):
    for context in ([A], [A, SPACE_A, A]):
        after = NEXT[context[-1]]
        end = after[EOS] / (after[SPACE_A] + after[EOS])
        assert sum_words(name, NEXT, context, SPACE_A) + end == pytest.approx(1, abs=1e-12)


def test_words_sum_to_one_where_no_text_ends():
    assert sum_words("oh-schuler", NEXT_WITHOUT_EOS, [A], SPACE_A) == pytest.approx(1, abs=1e-12)
    assert sum_words("oh-schuler", NEXT, [A], SPACE_A) < 0.99  # some words end the text


def test_first_words_sum_to_one_if_they_are_divided():
    end = NEXT[BOS, EOS] / (NEXT[BOS, A] + NEXT[BOS, EOS])
    assert sum_words("pimentel-meister", NEXT, [], A) + end == pytest.approx(1, abs=1e-12)
    assert sum_words("word-boundary", NEXT, [], A) == pytest.approx(NEXT[BOS, A], abs=1e-12)


def test_tokens_alone_do_not_sum_to_one():
    tokens = [NEXT[A, SPACE_A]] + [NEXT[SPACE_A, A] * NEXT[A, A] ** n for n in range(120)]
    words = tokens[0] + tokens[0] * sum(tokens[1:])
    assert words + NEXT[A, EOS] < 0.97


@pytest.fixture(scope="module", params=["byte-level", "metaspace"])
def model_parts(request):
    """A causal model and its tokenizer, which begins texts with <s>."""
    from tokenizers import processors

    tokenizer = train_tokenizer("causal", True)
    if request.param == "metaspace":
        tokenizer = train_metaspace(unk="<unk>")
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    return build_model("causal", 3, vocab_size=len(tokenizer)), tokenizer


def score_words(model_parts, **options) -> list[float]:
    """Log-probabilities of all words of TEXTS, in nats."""
    rows = surprisal(Scorer(*model_parts), TEXTS, base="e", **options).rows
    return [-row["surprisal_nats"] for row in rows]


def plain_word_scores(model_parts, name: str) -> list[float]:
    """Loop over the words of each text, as the papers define them."""
    model, tokenizer = model_parts
    space = "Ġ" if "Ġthe" in tokenizer.get_vocab() else "▁"
    vocabulary = tokenizer.get_vocab()
    spaces = [i for token, i in vocabulary.items() if token.startswith(space)]
    breaks = [i for token, i in vocabulary.items() if token[0] in "ĊĉčĠ" and space == "Ġ"]
    after_word = {
        "word-boundary": [*{*spaces, *breaks}, tokenizer.eos_token_id],
        "pimentel-meister": [*spaces, tokenizer.eos_token_id],
        "oh-schuler": spaces,
    }[name]
    scores = []
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        with torch.inference_mode():
            logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        tokens = tokenizer.convert_ids_to_tokens(ids)
        starts = [i for i, token in enumerate(tokens) if token.startswith(space)] + [len(ids)]
        for number, (start, end) in enumerate(pairwise(starts)):
            score = sum(logp[i - 1, ids[i]].item() for i in range(start, end))
            score += logp[end - 1, after_word].logsumexp(-1).item()
            if number or name == "pimentel-meister":  # these texts begin with a marked token
                score -= logp[start - 1, after_word].logsumexp(-1).item()
            scores.append(score)
    return scores


@pytest.mark.long
@pytest.mark.parametrize("name", CORRECTIONS)
def test_corrections_equal_a_plain_loop(model_parts, name):
    assert score_words(model_parts, correction=name) == pytest.approx(
        plain_word_scores(model_parts, name), abs=1e-4
    )


@pytest.mark.long
def test_oh_schuler_is_the_correction_of_minicons(model_parts):
    model, tokenizer = model_parts
    scorer = peers.make_minicons_scorer("causal", model, tokenizer)
    expected = []
    for scored in scorer.token_score(TEXTS, bow_correction=True):
        words: list[float] = []
        for token, score in scored[1:]:
            if token.startswith(("Ġ", "▁")):
                words.append(0.0)
            words[-1] += score
        expected += words
    ours = score_words(model_parts, correction="oh-schuler")
    assert ours == pytest.approx(expected, abs=1e-4)
    assert ours != pytest.approx(score_words(model_parts), abs=1e-2)
    assert ours != pytest.approx(score_words(model_parts, correction="word-boundary"), abs=1e-2)


@pytest.mark.long
def test_the_old_flag_is_word_boundary(model_parts):
    expected = score_words(model_parts, correction="word-boundary")
    assert score_words(model_parts, bow_correction=True) == expected


@pytest.mark.long
def test_tokens_with_their_share_add_up_to_words_and_texts(model_parts):
    scorer = Scorer(*model_parts)
    sums = [
        sum(row["surprisal_bits"] for row in rows)
        for rows in (
            surprisal(scorer, TEXTS, by=by, correction="pimentel-meister").rows
            for by in ("token", "word", "sentence")
        )
    ]
    assert sums[:2] == pytest.approx([sums[2]] * 2, abs=1e-4)


def test_a_text_without_spaces_before_its_first_word_is_divided_by_its_first_tokens():
    tokenizer = train_metaspace()
    boundary, text_start = build_token_sets(tokenizer, CORRECTIONS["pimentel-meister"], 10_000)
    spelled = set(tokenizer.convert_ids_to_tokens(boundary.tolist()))
    assert {"</s>", "▁the"} <= spelled and not {"t", "<s>"} & spelled
    first = set(tokenizer.convert_ids_to_tokens(text_start.tolist()))
    assert {"t", "</s>"} <= first and "▁the" not in first


def test_a_zero_width_space_ends_a_word_as_in_every_rule_for_words():
    text = "ab\u200bc d"
    borders = WordBorders.from_offsets(text, [(0, 2), (2, 4), (4, 6)])
    assert (borders.first_tokens, borders.last_tokens) == ([0, 1, 2], [0, 1, 2])
    words = split_words(text)
    assert [text[start:end] for start, end in words] == ["ab", "\u200bc", " d"]

    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    texts = ["a", " a", "\u200ba", "\u2013a", "\na"]  # U+2013 shares two bytes with U+200B
    spelled = {split.pre_tokenize_str(text)[0][0]: number for number, text in enumerate(texts)}
    words = Tokenizer(models.WordLevel(spelled, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    boundary, _ = build_token_sets(tokenizer, CORRECTIONS["word-boundary"], 10)
    spaces, _ = build_token_sets(tokenizer, CORRECTIONS["pimentel-meister"], 10)
    assert (boundary.tolist(), spaces.tolist()) == ([1, 2, 4], [1])


def test_a_tokenizer_without_marks_has_nothing_to_correct():
    class WordPiece:
        def __call__(self, text, add_special_tokens):
            return {"input_ids": [5, 5]}

        def convert_ids_to_tokens(self, ids):
            return ["a", "a"]

    with pytest.raises(MethodNotSupported, match="does not mark where words begin"):
        build_token_sets(WordPiece(), CORRECTIONS["word-boundary"], 10)


def test_unknown_corrections_are_refused():
    assert resolve_correction("none") is None
    with pytest.raises(UsageError, match=r"'eos'\n.*none, word-boundary, pim"):
        resolve_correction("eos")
