"""Every checkpoint of `cases/original`: our logits and scores equal those of the authors' code."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import torch
from peer_helpers import sum_logprobs
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoTokenizer

from antlm_bench.architectures.gpt_bert import bucket_index as gpt_index
from antlm_bench.architectures.ltg_bert import bucket_index as ltg_index
from antlm_bench.checkpoints import OpenOptions, conversion, open_checkpoint
from antlm_bench.errors import CheckpointError

# Which published code wrote them, where nothing in the folder says so.
LAYOUTS = {
    "ltg-bert-babylm": "ltg-bert-babylm",
    "ltg-bert-bnc": "ltg-bert-bnc",
    "ltg-bert-hub-wrapper": "ltg-bert-bnc",
    "ltg-bert-first-wrapper": "ltg-bert-first-wrapper",
    "elc-bert-base": None,
    "elc-bert-zero": "elc-bert-zero",
    "elc-bert-normalized": "elc-bert-normalized",
    "elc-bert-weighted-output": None,
    "gpt-bert-gated": None,
    "gpt-bert-plain": None,
    "gpt-bert-hub-wrapper": None,
}
# Record -> how far before the token it is read, and whether the row is causal (else the token is
# hidden).
READS = {
    "masked_logprobs": (0, False),
    "mlm_at_own_position_logprobs": (0, False),
    "mntp_logprobs": (1, False),
    "causal_logprobs": (1, True),
}
close = partial(torch.testing.assert_close, rtol=0, atol=2e-4)


@pytest.fixture
def original(cases_root):
    if not (cases_root / "original").is_dir():
        pytest.skip("needs the recorded checkpoints: ANTLM_BENCH_CASES/original")
    return cases_root / "original"


def attended(segments_or_mask, causal):
    """What each query may attend to, (b, 1, t, t), from a mask of keys (b, t) or segments (b,
    t).
    """
    allowed = segments_or_mask
    if causal:
        allowed = allowed & torch.ones(allowed.shape[-2:], dtype=torch.bool).tril()
    return allowed[:, None]


def converted(folder):
    """The checkpoint as our architecture, with nothing of the engine."""
    original = conversion.detect_original(folder, OpenOptions(original_layout=LAYOUTS[folder.name]))
    return original.build_model("masked", original.build_config())


def recorded_logits(model, expected, key):
    """Our logits for one record, and the positions at which they count."""
    causal = key.endswith("causal")
    if key.startswith("packed"):
        same = expected["packed_segments"][:, :, None] == expected["packed_segments"][:, None, :]
        mask, ids, real = (
            same,
            expected["packed_ids"],
            torch.ones_like(expected["packed_ids"]).bool(),
        )
    else:
        ids, real = expected["input_ids"], expected["attention_mask"].bool()
        mask = real[:, None, :].expand(-1, ids.shape[1], -1)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=attended(mask, causal)).logits, real


@pytest.mark.long
@pytest.mark.parametrize("name", LAYOUTS)
def test_logits_are_those_of_the_authors_code(original, name):
    model = converted(original / "checkpoints" / name)
    expected = load_file(original / "expected" / f"{name}.safetensors")
    keys = [key for key in expected if "logits" in key]
    assert keys
    for key in keys:
        logits, real = recorded_logits(model, expected, key)
        close(logits[real], expected[key][real])
    for key, (shift, causal) in READS.items():
        if key not in expected:
            continue
        for place, logprob in zip(
            expected["masked_positions"].tolist(), expected[key], strict=True
        ):
            ids, target = expected["masked_text"].clone(), expected["masked_text"][place]
            if not causal:
                ids[place] = 4
            everything = torch.ones(1, len(ids), len(ids), dtype=torch.bool)
            with torch.no_grad():
                logits = model(
                    input_ids=ids[None], attention_mask=attended(everything, causal)
                ).logits
            close(logits[0, place - shift].log_softmax(-1)[target], logprob)


@pytest.mark.parametrize("name", ["gpt-bert-gated", "gpt-bert-plain"])
def test_loss_and_gradient_are_those_of_the_authors_code(original, name):
    """The recorded gradients are of loss + 1e-4 z_loss; z_loss is the mean square of log sum exp
    logits.
    """
    model = converted(original / "checkpoints" / name)
    record = load_file(original / "expected" / f"{name}.safetensors")
    labels = record["labels"]
    mask = record["attention_mask"].bool()[:, None, :].expand(-1, labels.shape[1], -1)
    logits = model(
        input_ids=record["input_ids"], attention_mask=attended(mask, causal=False)
    ).logits
    read, wanted = logits[labels != -100], labels[labels != -100]
    loss, z_loss = functional.cross_entropy(read, wanted), read.logsumexp(-1).square().mean()
    close(torch.stack([loss, z_loss]), torch.cat([record["loss"], record["z_loss"]]))
    (loss + 1e-4 * z_loss).backward()
    gradient = model.get_input_embeddings().weight.grad
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    close(norm[None], record["gradient_norm"])
    close(gradient.norm()[None], record["gradient_of_embedding_norm"])
    close(gradient[record["input_ids"][0, 0]], record["gradient_of_embedding_first_row"])


SCORES = {
    **{
        name: ("mlm",)
        for name in LAYOUTS
        if name.startswith(("ltg", "elc")) and "wrapper" not in name
    },
    "gpt-bert-gated": ("mntp", "causal", "fused", "mlm"),
    "gpt-bert-plain": ("mntp", "causal", "fused", "mlm"),
}


@pytest.mark.long
@pytest.mark.parametrize("name", SCORES)
def test_sentences_score_as_the_authors_ranking_does(original, tmp_path, name):
    record = json.loads((original / "training" / "sentence_scores.json").read_text())
    assert set(record["scores"]) == set(SCORES)
    folder = original / "checkpoints" / name
    texts = [text for pair in record["pairs"] for text in pair]
    for method in SCORES[name]:
        opened = folder
        if (
            name.startswith("gpt") and method == "mlm"
        ):  # this ranking alone closes a sentence with </s>
            opened = closed_by_eos(folder, tmp_path / method)
        scores = sum_logprobs(opened, texts, method, original_layout=LAYOUTS[name])
        assert scores == pytest.approx(np.ravel(record["scores"][name][method]).tolist(), abs=2e-3)


def closed_by_eos(folder, copy):
    """The same checkpoint with a tokenizer that writes `<s> text </s>`."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = AutoTokenizer.from_pretrained(folder)
    specials = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    template = TemplateProcessing(single="<s> $A </s>", special_tokens=specials)
    tokenizer.backend_tokenizer.post_processor = template
    tokenizer.save_pretrained(copy)
    for file in ("config.json", "model.safetensors"):
        (copy / file).write_bytes((folder / file).read_bytes())
    return copy


@pytest.mark.parametrize("name", [name for name, layout in LAYOUTS.items() if layout])
def test_indistinguishable_layouts_need_the_option(original, name):
    family = "ltg-bert" if name.startswith("ltg") else "elc-bert"
    with pytest.raises(CheckpointError, match=f"--original-layout (NAME with one of )?{family}"):
        open_checkpoint(str(original / "checkpoints" / name), OpenOptions(device="cpu"))


@pytest.mark.parametrize("bucket_index", [ltg_index, gpt_index])
def test_position_buckets_equal_the_authors_for_odd_counts(original, bucket_index):
    record = json.loads((original / "training" / "position_buckets.json").read_text())
    cases = [case for case in record.values() if isinstance(case, dict)]
    assert {case["buckets"] % 2 for case in cases} == {0, 1}
    for case in cases:
        n = case["positions"]
        index = bucket_index(n, case["buckets"], n)
        by_distance = [int(index[max(k, 0), max(-k, 0)]) for k in range(-n + 1, n)]
        assert by_distance == case["index_of_distance"]
