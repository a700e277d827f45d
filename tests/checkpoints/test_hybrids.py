"""Checkpoints that were trained with both attentions, and the training metadata in config.json."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prediction_rows import predict_rows
from tiny_models import train_tokenizer

from antlm_bench import score
from antlm_bench.architectures.gpt_bert import GptBertConfig, GptBertForCausalLM, GptBertForMaskedLM
from antlm_bench.architectures.ltg_bert import LtgBertConfig, LtgBertForCausalLM, LtgBertForMaskedLM
from antlm_bench.checkpoints import (
    TRAINING_KEY,
    OpenOptions,
    forward_trials,
    open_checkpoint,
)
from antlm_bench.errors import MethodNotSupported, UsageError
from antlm_bench.scoring.methods import resolve_method
from antlm_bench.types import Item, Option

SHAPE = {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 48, "position_bucket_size": 4, "max_position_embeddings": 64,
         "pad_token_id": 0,
         "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
HYBRIDS = {
    "ltg-bert": (LtgBertConfig, LtgBertForMaskedLM, LtgBertForCausalLM),
    "gpt-bert": (GptBertConfig, GptBertForMaskedLM, GptBertForCausalLM),
}
BOTH = {"attends": ["causal", "full"], "methods": ["mlm", "causal"]}
TEXTS = [
    "the old cat sees no dogs.",
    "the old cat see no dogs.",
    "who sleeps?",
    "some girl has never seen himself.",
]


def saved(folder: Path, model: Any, training: Any = None) -> Path:
    if training is not None:
        setattr(model.config, TRAINING_KEY, training)
    model.save_pretrained(folder)
    train_tokenizer("causal", adds=True).save_pretrained(folder)
    return folder


def scores(folder: Path, name: str) -> np.ndarray[Any, Any]:
    opened = open_checkpoint(str(folder), OpenOptions(device="cpu"))
    items = [Item(str(n), (Option(text), Option(text)), 0) for n, text in enumerate(TEXTS)]
    return np.array(
        [p.scores[0] for p in predict_rows(opened, items, [resolve_method(name, opened)])[0]]
    )


@pytest.fixture(params=HYBRIDS)
def folders(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Path]:
    """The same weights as a hybrid with training metadata, a masked LM and a causal LM."""
    config, masked, causal = HYBRIDS[request.param]
    torch.manual_seed(3)
    model = masked(config(**SHAPE)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    twin = causal(config(**SHAPE)).eval()
    twin.load_state_dict(model.state_dict())
    plain = saved(tmp_path / "plain", model)
    return {
        "plain": plain,
        "causal": saved(tmp_path / "left", twin),
        "hybrid": saved(tmp_path / "both", model, BOTH),
    }


@pytest.mark.long
def test_a_hybrid_is_read_both_ways_with_the_same_weights(folders: dict[str, Path]) -> None:
    causal, full = scores(folders["hybrid"], "causal"), scores(folders["hybrid"], "mlm")
    assert np.allclose(causal, scores(folders["causal"], "causal"), rtol=0, atol=1e-5)
    assert np.allclose(full, scores(folders["plain"], "mlm"), rtol=0, atol=1e-5)
    assert np.abs(causal - full).min() > 1e-3


@pytest.mark.long
def test_causal_scores_of_a_hybrid_are_those_of_its_logits(
    folders: dict[str, Path],
) -> None:
    opened = open_checkpoint(str(folders["causal"]), OpenOptions(device="cpu"))
    by_hand = []
    for text in TEXTS:
        ids = torch.tensor([train_tokenizer("causal", adds=True)(text)["input_ids"]])
        with torch.no_grad():
            logp = opened.engine.model(input_ids=ids).logits[0].log_softmax(-1)
        by_hand.append(float(logp[:-1].gather(1, ids[0, 1:, None]).sum()))
    assert np.allclose(scores(folders["hybrid"], "causal"), by_hand, rtol=0, atol=1e-4)


@pytest.mark.long
def test_a_masked_model_without_metadata_is_not_scored_causally(
    folders: dict[str, Path],
) -> None:
    with pytest.raises(MethodNotSupported, match="does not run with causal attention"):
        scores(folders["plain"], "causal")


@pytest.mark.long
def test_a_causal_model_of_ours_has_no_masked_method(make_checkpoint: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(make_checkpoint("causal"), tmp_path / "ours")
    assert "mlm" in open_checkpoint(str(folder)).methods, (
        "a foreign one with a mask token might be a hybrid"
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {TRAINING_KEY: {"attends": ["causal"], "methods": ["causal"]}})
    )
    assert open_checkpoint(str(folder)).methods == ["causal"]


@pytest.mark.long
def test_training_metadata_orders_the_methods(folders: dict[str, Path], tmp_path: Path) -> None:
    assert open_checkpoint(str(folders["hybrid"])).methods[:2] == ["mlm", "causal"]
    [run] = score(folders["hybrid"], "nano", limit=1, out=tmp_path / "default", device="cpu")
    assert [cell.method for cell in run] == ["mlm"]
    [run] = score(
        folders["hybrid"], "nano", methods="all", limit=1, out=tmp_path / "all", device="cpu"
    )
    assert sorted(cell.method for cell in run) == ["causal", "mlm"]


@pytest.mark.long
@pytest.mark.parametrize(
    "training", ["yes", {"attends": ["sideways"], "methods": ["guess"]}, {"attends": None}]
)
def test_foreign_training_metadata_changes_nothing(
    make_checkpoint: Any, tmp_path: Path, training: Any
) -> None:
    folder = shutil.copytree(make_checkpoint("masked"), tmp_path / "theirs")
    before = open_checkpoint(str(folder)).methods
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {TRAINING_KEY: training}))
    assert open_checkpoint(str(folder)).methods == before


def test_a_folder_named_main_gets_its_parents_name(make_checkpoint: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(make_checkpoint("causal"), tmp_path / "babyllama" / "main")
    assert open_checkpoint(str(folder)).name == "babyllama"


def test_an_invalid_option_is_a_usage_error(make_checkpoint: Any, tmp_path: Path) -> None:
    for name in ("chck_1M", "chck_2M"):
        shutil.copytree(make_checkpoint("causal"), tmp_path / "sweep" / name)
    with pytest.raises(UsageError, match="unknown device"):
        score(tmp_path / "sweep", "nano", limit=1, out=tmp_path / "out", device="abacus")


@pytest.mark.long
def test_words_seen_come_from_training_metadata(tmp_path: Path) -> None:
    """Learning curves are drawn over them; what else a foreign configuration says under that key is
    nobody's.
    """
    model = LtgBertForMaskedLM(LtgBertConfig(**SHAPE))
    for training, words_seen in (
        ({**BOTH, "words_seen": 250_000}, 250_000),
        ({"words_seen": "many"}, None),
        (None, None),
    ):
        name = f"{words_seen}-{bool(training)}"
        folder = saved(tmp_path / name, LtgBertForMaskedLM(model.config), training)
        checkpoint = open_checkpoint(str(folder), OpenOptions(device="cpu"))
        assert checkpoint.metadata.get("words_seen") == words_seen


def test_attention_masks_are_tried_on_the_device_of_the_model() -> None:
    devices = []

    class MetaModel:
        config = LtgBertConfig(**SHAPE)
        device = torch.device("meta")

        def get_output_embeddings(self) -> None:
            return None

        def base_model(self, input_ids: Any, attention_mask: Any = None) -> tuple[torch.Tensor]:
            devices.extend([] if attention_mask is None else [attention_mask.device.type])
            return (torch.zeros(2, input_ids.shape[1], 1),)

    forward_trials.obeys_attention_masks(MetaModel(), "full")
    assert devices == ["meta", "meta"]
