"""A backbone has the metadata of a scored checkpoint, and can be trained."""

from __future__ import annotations

import pytest
import torch
from finetuning_helpers import make_task
from ltg_models import build_ltg_model
from prediction_rows import to_rows
from tiny_models import build_model, train_tokenizer

from antlm_bench.checkpoints import (
    TRAINING_KEY,
    OpenOptions,
    open_backbone,
    open_checkpoint,
    select_content_key_metadata,
)
from antlm_bench.errors import CheckpointError
from antlm_bench.finetuning.loop import FinetuneSettings, finetune


@pytest.mark.long
@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_a_backbone_has_the_metadata_of_the_scored_checkpoint(make_checkpoint, kind):
    folder = str(make_checkpoint(kind, mask=kind == "masked"))
    body, scored = open_backbone(folder), open_checkpoint(folder)
    of_the_engine = {"shortcuts", "self_test"}  # finetuning uses the library's own layers
    assert body.metadata == {k: v for k, v in scored.metadata.items() if k not in of_the_engine}
    assert select_content_key_metadata(body) == select_content_key_metadata(scored)
    assert (body.name, body.kind, body.max_length) == (scored.name, scored.kind, scored.max_length)
    assert body.attentions == scored.attentions


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_a_backbone_is_the_library_model_without_its_lm_head(make_checkpoint, kind):
    body = open_backbone(str(make_checkpoint(kind, mask=kind == "masked")))
    plain = build_model(kind, 0).base_model
    ids = torch.arange(5, 25).view(2, 10)
    with torch.no_grad():
        torch.testing.assert_close(body.model(ids)[0], plain(ids)[0], atol=1e-5, rtol=1e-5)
    assert not any(
        "lm_head" in name or "decoder" in name for name, _ in body.model.named_parameters()
    )
    assert body.model.config._attn_implementation == "sdpa" and body.model.dtype == torch.float32


@pytest.mark.long
def test_training_metadata_opens_both_attentions(tmp_path):
    model = build_ltg_model("gpt", "ForCausalLM", vocab_size=400, max_position_embeddings=64)
    setattr(
        model.config, TRAINING_KEY, {"attends": ["causal", "full"], "methods": ["mntp", "causal"]}
    )
    model.save_pretrained(tmp_path)
    train_tokenizer("masked", True).save_pretrained(tmp_path)
    body = open_backbone(str(tmp_path))
    assert body.attentions == {"causal", "full"} and body.trained_methods == ("mntp", "causal")
    toy = make_task(60, 20, epochs=1)
    full, causal = (
        finetune(body, toy, 1, way, FinetuneSettings("cpu")) for way in ("full", "causal")
    )
    assert [p.scores for p in to_rows(full.predictions)] != [
        p.scores for p in to_rows(causal.predictions)
    ]
    assert (full.history["pooling"], causal.history["pooling"]) == ("first", "last")


def test_a_folder_without_weights_is_an_error(tmp_path):
    with pytest.raises(CheckpointError):
        open_backbone(str(tmp_path), OpenOptions())
