"""Checkpoints with equal tokenizers tokenize a text once, and score as each does by itself."""

from __future__ import annotations

import gc
import shutil
import tracemalloc

import numpy as np
import pytest
from score_helpers import make_agreement_rows, write_pairs

from antlm_bench import score
from antlm_bench.checkpoints import OpenOptions, open_checkpoint
from antlm_bench.commands.score import ScoreCall, ScoreOptions
from antlm_bench.scoring.shared_encodings import EncodingCache
from antlm_bench.scoring.tokens import TextTokenizer

TEXTS = ["the cat sees the dog.", "who sleeps?", "the old dogs sleep near the house."]
SPANS = [None, (3, 10), (0, 7)]


@pytest.fixture
def tokenized(monkeypatch):
    """The texts that are tokenized, in order."""
    texts: list[str] = []
    original = TextTokenizer.tokenize

    def tokenize(self, new_texts, *args):
        texts.extend(new_texts)
        return original(self, new_texts, *args)

    monkeypatch.setattr(TextTokenizer, "tokenize", tokenize)
    return texts


def opened(folder):
    return open_checkpoint(str(folder), OpenOptions(device="cpu"))


def encode(checkpoint, texts=TEXTS, spans=SPANS, attention="causal"):
    return checkpoint.encode(texts, spans, attention)


def assert_equal(encodings, expected):
    assert len(encodings.batches) == len(expected.batches)
    for batch, other in zip(encodings.batches, expected.batches, strict=True):
        for name in ("ids", "score_mask", "word_ids", "last_word_ids", "text_index"):
            np.testing.assert_array_equal(getattr(batch, name), getattr(other, name))


@pytest.mark.parametrize("kind, method", [("causal", "causal"), ("masked", "mlm-l2r")])
def test_texts_of_a_suite_are_tokenized_once(make_checkpoint, tmp_path, tokenized, kind, method):
    folders = [str(make_checkpoint(kind, seed=seed)) for seed in (1, 2, 3)]
    pairs = write_pairs(tmp_path / "pairs.csv", make_agreement_rows(14))
    options = {"method": method, "device": "cpu"}
    runs = score(folders, str(pairs), out=tmp_path / "runs", **options)
    texts = [text for line in pairs.read_text().splitlines()[1:] for text in line.split(",")[:2]]
    # Once in the chunk; up to five texts once more in the self-test.
    assert all(1 <= tokenized.count(text) <= 2 for text in texts)
    assert sum(tokenized.count(text) == 2 for text in texts) <= 5
    for run, folder in zip(runs, folders, strict=True):
        [alone] = score(folder, str(pairs), out=tmp_path / "alone" / folder[-8:], **options)
        assert run["pairs"].digest == alone["pairs"].digest


def test_a_single_checkpoint_keeps_no_encodings(make_checkpoint, tmp_path):
    pairs = write_pairs(tmp_path / "pairs.csv", make_agreement_rows(4))
    call = ScoreCall(str(make_checkpoint()), str(pairs), (), tmp_path / "run", ScoreOptions())
    assert call.session.encodings is None


def test_equal_tokenizers_share_and_others_do_not(make_checkpoint, tmp_path, tokenized):
    first, second = make_checkpoint(seed=1), make_checkpoint(seed=2)
    other = shutil.copytree(second, tmp_path / "other")
    config = other / "tokenizer_config.json"
    config.write_text(config.read_text().replace("{", '{"note": 1,', 1))
    cache, checkpoints = EncodingCache(), [opened(path) for path in (first, second, other)]
    expected = [encode(checkpoint) for checkpoint in checkpoints]
    del tokenized[:]
    for checkpoint, encodings in zip(checkpoints, expected, strict=True):
        checkpoint.share_encodings(cache)
        assert_equal(encode(checkpoint), encodings)
    assert tokenized == TEXTS * 2


def test_whatever_decides_an_encoding_is_in_its_key(make_checkpoint, tokenized):
    """Texts, spans, BOS, rules of words: each encodes anew, as without cache."""
    plain, shared = (opened(make_checkpoint()) for _ in range(2))
    shared.share_encodings(EncodingCache())
    variants = {
        "plain": lambda checkpoint: encode(checkpoint),
        "texts": lambda checkpoint: encode(checkpoint, TEXTS[::-1]),
        "spans": lambda checkpoint: encode(checkpoint, spans=[None] * 3),
        "bos": lambda checkpoint: encode(checkpoint.with_context_bos_policy("never")),
        "words": lambda checkpoint: encode(checkpoint.with_word_rule("characters")),
    }
    for name, variant in variants.items():
        expected = variant(plain)
        for num_tokenized in (3, 0):
            del tokenized[:]
            assert_equal(variant(shared), expected)
            assert len(tokenized) == num_tokenized, name


def test_memory_is_bounded_and_unused_encodings_make_room(make_checkpoint, tokenized):
    checkpoint = opened(make_checkpoint())
    first, second = TEXTS[:1], TEXTS[1:2]
    measured = EncodingCache()
    checkpoint.share_encodings(measured)
    encode(checkpoint, first, [None])
    cache = EncodingCache(max_bytes=measured.num_bytes)

    def score_next_checkpoint(texts):
        """Return how many texts are tokenized anew."""
        checkpoint.shared_encodings = None
        checkpoint.share_encodings(cache)
        del tokenized[:]
        encode(checkpoint, texts, [None])
        assert cache.num_bytes <= cache.max_bytes
        return len(tokenized)

    assert [score_next_checkpoint(first) for _ in range(2)] == [1, 0]
    # There is no room for other texts until a whole checkpoint has not used the first ones.
    assert [score_next_checkpoint(second) for _ in range(3)] == [1, 1, 0]
    assert score_next_checkpoint(first) == 1


def test_memory_of_many_small_batches_is_counted(make_checkpoint):
    checkpoint, cache = opened(make_checkpoint()), EncodingCache()
    checkpoint.share_encodings(cache)
    encode(checkpoint)
    num_bytes_before = cache.num_bytes
    tracemalloc.start()
    for number in range(100):
        encode(checkpoint, [f"{text} {number}" for text in TEXTS])
    gc.collect()
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert used < 1.2 * (cache.num_bytes - num_bytes_before)


def test_shared_arrays_cannot_be_changed(make_checkpoint):
    checkpoint = opened(make_checkpoint())
    checkpoint.share_encodings(EncodingCache())
    batch = encode(checkpoint).batches[0]
    with pytest.raises(ValueError, match="read-only"):
        batch.ids[0, 0] = 1
