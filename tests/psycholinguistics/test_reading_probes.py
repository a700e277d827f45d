"""Words after their contexts, against a plain implementation of the procedure of BabyLM 2025."""

from __future__ import annotations

import pytest
import torch
from prediction_rows import rows_per_method

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


def load_transformers(folder):
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, config.architectures[0]).from_pretrained(folder).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def next_token_logprob(model, tokenizer, text, target, method):
    """Return log P(target) after a text: at its end, or at the first mask (mntp: before it)."""
    masks = "" if method == "causal" else tokenizer.mask_token * NUM_MASKS
    ids = tokenizer(text + masks)["input_ids"]
    at = (
        len(ids) - 1
        if method == "causal"
        else ids.index(tokenizer.mask_token_id) - (method == "mntp")
    )
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0, at].log_softmax(-1)[target].item()


def score_official_word(model, tokenizer, context, word, method):
    """Tokenize the word without its context; decode and tokenize each further piece again."""
    pieces = tokenizer(word, add_special_tokens=False)["input_ids"]
    total = next_token_logprob(model, tokenizer, context, pieces[0], method)
    for number in range(1, len(pieces)):
        context += tokenizer.decode(pieces[number - 1])
        token = tokenizer(tokenizer.decode(pieces[number]), add_special_tokens=False)["input_ids"][
            0
        ]
        total += next_token_logprob(model, tokenizer, context, token, method)
    return total


def score_attached_word(model, tokenizer, context, word, method):
    """Score the tokens of the word in one text with its context, each after those before it."""
    encoding = tokenizer(f"{context} {word}", add_special_tokens=False, return_offsets_mapping=True)
    ids, total = encoding["input_ids"], 0.0
    for index, (_, end) in enumerate(encoding["offset_mapping"]):
        if end > len(context):
            prefix = [tokenizer.bos_token_id, *ids[:index]]
            if method == "causal":
                row, position = prefix, len(prefix) - 1
            else:
                row = [*prefix, *[tokenizer.mask_token_id] * NUM_MASKS, tokenizer.eos_token_id]
                position = len(prefix) - (method == "mntp")
            with torch.inference_mode():
                total += (
                    model(torch.tensor([row]))
                    .logits[0, position]
                    .log_softmax(-1)[ids[index]]
                    .item()
                )
    return total


def make_items(space):
    def option(context, word):
        return Option(context + space + word, (len(context), len(context + space + word)))

    return [Item(str(n), (option(*pair), option("a", "cat")), 0) for n, pair in enumerate(WORDS)]


@pytest.mark.long
@pytest.mark.parametrize(("kind", "method"), CASES)
def test_words_without_a_space_equal_the_official_pipeline(make_checkpoint, kind, method):
    folder = make_checkpoint(kind, adds=True)
    model = open_checkpoint(str(folder), OpenOptions(device="cpu"))
    (predictions,) = rows_per_method(
        predict(model, make_items(""), [METHODS[method]], decode_token=model.decode_token)
    )
    model_and_tokenizer = load_transformers(folder)
    for (context, word), prediction in zip(WORDS, predictions, strict=True):
        assert prediction.scores[0] == pytest.approx(
            score_official_word(*model_and_tokenizer, context, word, method), abs=1e-4
        )
        assert prediction.scores[1] == pytest.approx(
            score_official_word(*model_and_tokenizer, "a", "cat", method), abs=1e-4
        )
    assert (
        max(prediction.tokens[0] for prediction in predictions) > 3
    )  # the loop over pieces was needed


@pytest.mark.long
@pytest.mark.parametrize(("kind", "method"), CASES)
def test_words_with_a_space_see_their_left_context_only(make_checkpoint, kind, method):
    folder = make_checkpoint(kind, adds=True)
    model = open_checkpoint(str(folder), OpenOptions(device="cpu", batch_tokens=40))
    (predictions,) = rows_per_method(predict(model, make_items(" "), [METHODS[method]]))
    model_and_tokenizer = load_transformers(folder)
    for (context, word), prediction in zip(WORDS, predictions, strict=True):
        assert prediction.scores[0] == pytest.approx(
            score_attached_word(*model_and_tokenizer, context, word, method), abs=1e-4
        )


def test_each_method_has_its_list_of_predictions(make_checkpoint):
    model = open_checkpoint(str(make_checkpoint("masked", adds=True)), OpenOptions(device="cpu"))
    mlm, mntp = rows_per_method(predict(model, make_items(" "), [METHODS["mlm"], METHODS["mntp"]]))
    assert [p.id for p in mlm] == [p.id for p in mntp] and mlm[0].scores != mntp[0].scores
    for name in ("mlm-l2r", "fused"):
        with pytest.raises(MethodNotSupported):
            rows_per_method(predict(model, make_items(" "), [METHODS[name]]))


@pytest.mark.parametrize("glued", [True, False])
def test_a_context_that_does_not_fit_with_its_masks_is_flagged(make_checkpoint, glued):
    model = open_checkpoint(
        str(make_checkpoint("masked", adds=True)), OpenOptions(device="cpu", max_length=10)
    )
    long, short = (
        Item("l", (Option("the old cat sees some dogs the", (26, 30)),), 0),
        Item("s", (Option("a cat", (1, 5)),), 0),
    )
    (predictions,) = rows_per_method(
        predict(
            model,
            [long, short],
            [METHODS["mlm"]],
            decode_token=model.decode_token if glued else None,
        )
    )
    assert [p.flags for p in predictions] == [("too-long",), ()]
    assert predictions[0].scores == (-1.0,) and predictions[1].scores[0] < 0


def test_a_word_with_nothing_before_it_is_an_error(make_checkpoint):
    model = open_checkpoint(
        str(make_checkpoint("causal", adds=False)), OpenOptions(device="cpu", bos="never")
    )
    with pytest.raises(DataError, match="cannot be scored") as caught:
        rows_per_method(
            predict(model, [Item("first", (Option("cat", (0, 3)),), 0)], [METHODS["causal"]])
        )
    assert caught.value.location == "item first"
