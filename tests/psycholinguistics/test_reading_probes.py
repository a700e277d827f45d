"""Words after their contexts against the official procedure of BabyLM 2025, written out slowly from
its description.
"""

from __future__ import annotations

import pytest
import torch

from antlm_bench.checkpoints import OpenOptions, open_checkpoint
from antlm_bench.errors import DataError, MethodNotSupported
from antlm_bench.scoring.methods import METHODS
from antlm_bench.scoring.surprisal import NUM_MASKS, predict
from antlm_bench.types import Item, Option

WORDS = [
    ("the cat", "sees"),
    ("some old", "houses"),
    ("who", "antidisestablishmentarian"),
    ("a dog near", "naïve,"),
]
CASES = [("causal", "causal"), ("masked", "mlm"), ("masked", "mntp")]


def library(folder):
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, config.architectures[0]).from_pretrained(folder).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def next_token(model, tokenizer, text, target, method):
    """log P(target) after a text: at its end, or at the first of three masks (mntp: before it)."""
    masks = "" if method == "causal" else tokenizer.mask_token * NUM_MASKS
    ids = tokenizer(text + masks)["input_ids"]
    at = (
        len(ids) - 1
        if method == "causal"
        else ids.index(tokenizer.mask_token_id) - (method == "mntp")
    )
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0, at].log_softmax(-1)[target].item()


def official(model, tokenizer, context, word, method):
    """The word tokenised alone; further pieces are spelled out, tokenised again, and follow what
    was spelled so far.
    """
    pieces = tokenizer(word, add_special_tokens=False)["input_ids"]
    total = next_token(model, tokenizer, context, pieces[0], method)
    for number in range(1, len(pieces)):
        context += tokenizer.decode(pieces[number - 1])
        again = tokenizer(tokenizer.decode(pieces[number]), add_special_tokens=False)["input_ids"][
            0
        ]
        total += next_token(model, tokenizer, context, again, method)
    return total


def attached(model, tokenizer, context, word, method):
    """The word in one text with its context, every token after those before it."""
    found = tokenizer(f"{context} {word}", add_special_tokens=False, return_offsets_mapping=True)
    ids, total = found["input_ids"], 0.0
    for at, (_, end) in enumerate(found["offset_mapping"]):
        if end > len(context):
            first = [tokenizer.bos_token_id, *ids[:at]]
            if method == "causal":
                row, place = first, len(first) - 1
            else:
                row = [*first, *[tokenizer.mask_token_id] * NUM_MASKS, tokenizer.eos_token_id]
                place = len(first) - (method == "mntp")
            with torch.inference_mode():
                total += model(torch.tensor([row])).logits[0, place].log_softmax(-1)[ids[at]].item()
    return total


def items(space):
    def option(context, word):
        return Option(context + space + word, (len(context), len(context + space + word)))

    return [Item(str(n), (option(*pair), option("a", "cat")), 0) for n, pair in enumerate(WORDS)]


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_glued_words_are_scored_as_the_official_pipeline_does(make_checkpoint, kind, method):
    folder = make_checkpoint(kind, adds=True)
    model = open_checkpoint(str(folder), OpenOptions(device="cpu"))
    (found,) = predict(model, items(""), [METHODS[method]], decode_token=model.decode_token)
    theirs = library(folder)
    for (context, word), one in zip(WORDS, found, strict=True):
        assert one.scores[0] == pytest.approx(official(*theirs, context, word, method), abs=1e-4)
        assert one.scores[1] == pytest.approx(official(*theirs, "a", "cat", method), abs=1e-4)
    assert max(one.tokens[0] for one in found) > 3  # the loop over pieces was needed


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_attached_words_see_their_left_context_alone(make_checkpoint, kind, method):
    folder = make_checkpoint(kind, adds=True)
    model = open_checkpoint(str(folder), OpenOptions(device="cpu", batch_tokens=40))
    (found,) = predict(model, items(" "), [METHODS[method]])
    theirs = library(folder)
    for (context, word), one in zip(WORDS, found, strict=True):
        assert one.scores[0] == pytest.approx(attached(*theirs, context, word, method), abs=1e-4)


def test_several_methods_give_a_list_each_and_whole_sentence_methods_are_refused(make_checkpoint):
    model = open_checkpoint(str(make_checkpoint("masked", adds=True)), OpenOptions(device="cpu"))
    mlm, mntp = predict(model, items(" "), [METHODS["mlm"], METHODS["mntp"]])
    assert [p.id for p in mlm] == [p.id for p in mntp] and mlm[0].scores != mntp[0].scores
    for name in ("mlm-l2r", "fused"):
        with pytest.raises(MethodNotSupported):
            predict(model, items(" "), [METHODS[name]])


@pytest.mark.parametrize("glued", [True, False])
def test_a_context_that_does_not_fit_with_its_masks_is_flagged(make_checkpoint, glued):
    model = open_checkpoint(
        str(make_checkpoint("masked", adds=True)), OpenOptions(device="cpu", max_length=10)
    )
    long, short = (
        Item("l", (Option("the old cat sees some dogs the", (26, 30)),), 0),
        Item("s", (Option("a cat", (1, 5)),), 0),
    )
    (found,) = predict(
        model, [long, short], [METHODS["mlm"]], decode_token=model.decode_token if glued else None
    )
    assert [p.flags for p in found] == [("too-long",), ()]
    assert found[0].scores == (-1.0,) and found[1].scores[0] < 0


def test_a_word_with_nothing_before_it_is_an_error(make_checkpoint):
    model = open_checkpoint(
        str(make_checkpoint("causal", adds=False)), OpenOptions(device="cpu", bos="never")
    )
    with pytest.raises(DataError, match="cannot be scored") as caught:
        predict(model, [Item("first", (Option("cat", (0, 3)),), 0)], [METHODS["causal"]])
    assert caught.value.location == "item first"
