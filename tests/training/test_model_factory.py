"""Models from declarations: attention follows the batch, packed documents stay apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from recipe_helpers import make_recipe

from antlm_bench.declarations import list_declarations
from antlm_bench.training.corpus import FIRST_REGULAR_ID, Int64
from antlm_bench.training.losses import sliced_cross_entropy
from antlm_bench.training.model_factory import (
    build_model,
    compute_hidden_states,
    hidden_states_at_targets,
    is_natively_causal,
    lm_head_parameters,
)
from antlm_bench.training.objectives import (
    StepMasking,
    TrainingBatch,
    make_clm_batch,
    make_masked_batch,
)
from antlm_bench.training.recipe import ModelSpec, ObjectiveSpec, read_recipe

VOCABULARY, WIDTH = 300, 12
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"architecture": "llama"},
    "llama-grouped": {"architecture": "llama", "kv_heads": 2, "tied": True},
    "gpt2": {"architecture": "gpt2", "tied": True},
    "ltg-bert": {"architecture": "ltg-bert"},
    "elc-bert": {"architecture": "ltg-bert", "layer_mix": "zero"},
    "gpt-bert": {"architecture": "gpt-bert", "tied": True},
}


def spec_of(shape: str) -> ModelSpec:
    return make_recipe(model=SHAPES[shape] | {"buckets": 4}).model


def made(shape: str, masked: bool = False) -> Any:
    """In double precision, with weights large enough that what is seen shows."""
    torch.manual_seed(0)
    model = build_model(spec_of(shape), VOCABULARY, masked).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(2)
    return model


def ids_of(rows: int, seed: int = 0) -> Int64:
    return np.random.default_rng(seed).integers(FIRST_REGULAR_ID, VOCABULARY, (rows, WIDTH))


def batch_of(ids: Int64, causal: bool, segments: Int64 | None = None) -> TrainingBatch:
    segments = np.zeros_like(ids) if segments is None else segments
    created = make_clm_batch(ids, segments, np.arange(len(ids)))
    return TrainingBatch(
        "clm" if causal else "mlm",
        ids,
        created.targets,
        created.document_ids,
        causal,
        created.row_indices,
    )


@pytest.mark.long
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_causal_rows_do_not_see_the_future_and_full_rows_do(shape: str, masked: bool) -> None:
    model, ids = made(shape, masked), ids_of(1)
    other = ids.copy()
    other[0, 7] = FIRST_REGULAR_ID + (other[0, 7] - FIRST_REGULAR_ID + 1) % (
        VOCABULARY - FIRST_REGULAR_ID
    )
    for causal in (True, False):
        change = (
            (
                compute_hidden_states(model, batch_of(ids, causal))
                - compute_hidden_states(model, batch_of(other, causal))
            )[0]
            .abs()
            .amax(1)
        )
        assert (change[7:] > 1e-6).all()
        assert (change[:7] < 1e-12).all() if causal else (change[:7] > 1e-9).all()


@pytest.mark.long
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_packed_documents_are_separate_rows(shape: str, causal: bool) -> None:
    model, ids = made(shape), ids_of(2)
    segments = np.array([[3] * 5 + [4] * 7, [4] * 1 + [5] * 8 + [6] * 3])
    packed = compute_hidden_states(model, batch_of(ids, causal, segments))
    for row, first, last in ((0, 0, 5), (0, 5, 12), (1, 0, 1), (1, 1, 9), (1, 9, 12)):
        alone = compute_hidden_states(model, batch_of(ids[[row], first:last], causal))[0]
        assert torch.allclose(packed[row, first:last], alone, atol=1e-9), (
            "positions, too, count from its beginning"
        )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_causal_loss_is_the_librarys(architecture: str, tied: bool) -> None:
    torch.manual_seed(0)
    model = build_model(
        make_recipe(model={"architecture": architecture, "tied": tied}).model,
        VOCABULARY,
        masked=False,
    ).eval()
    ids = ids_of(3)
    batch = batch_of(ids, causal=True)
    labels = torch.from_numpy(ids)
    expected = model(input_ids=labels, labels=labels).loss
    hidden, targets = hidden_states_at_targets(model, batch)
    loss, nats = sliced_cross_entropy(hidden, *lm_head_parameters(model), targets)
    assert len(targets) == batch.num_targets == 3 * (WIDTH - 1)
    assert (loss / batch.num_targets).item() == pytest.approx(expected.item(), rel=1e-5)
    assert nats.item() == pytest.approx(loss.item())
    ours, theirs = (
        torch.autograd.grad(x, model.get_input_embeddings().weight)
        for x in (loss / batch.num_targets, expected)
    )
    assert torch.allclose(ours[0], theirs[0], atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_the_head_at_targets_equals_the_whole_model(shape: str) -> None:
    """For a masked objective: the library's logits of the whole row, read at the targets."""
    model, ids = made(shape, masked=True), ids_of(4)
    batch = make_masked_batch(
        ids, np.zeros_like(ids), np.arange(4), StepMasking(ObjectiveSpec(), 0.3, (0, 0), VOCABULARY)
    )
    hidden, targets = hidden_states_at_targets(model, batch)
    weight, bias = lm_head_parameters(model)
    logits = hidden @ weight.t() + (0 if bias is None else bias)
    full = torch.ones(1, 1, WIDTH, WIDTH, dtype=torch.bool)
    extra = {} if is_natively_causal(model) is False else {"attention_mask": full}
    whole = model(input_ids=torch.from_numpy(batch.input_ids), **extra).logits
    expected = torch.from_numpy(batch.targets)
    assert torch.equal(targets, expected[expected >= 0])
    assert torch.allclose(logits, whole[expected >= 0], atol=1e-9)


@pytest.mark.long
@pytest.mark.parametrize("name", list_declarations("models"))
def test_every_shipped_recipe_builds_with_its_options(name: str) -> None:
    """Its architecture and options, at a size for tests."""
    tiny = ["layers=2", "hidden=32", "heads=4", "ffn=48", "positions=1024"]
    tiny += ["kv_heads=2"] if read_recipe(name).model.kv_heads else []
    recipe = read_recipe(name, overrides=[f"model.{change}" for change in tiny])
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.model, VOCABULARY, masked="full" in recipe.attentions)
    assert len(model.get_input_embeddings().weight) == VOCABULARY
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == recipe.model.tied == model.config.tie_word_embeddings
    config = model.config.to_dict()
    assert (
        config["pad_token_id"] == 0 and config["bos_token_id"] == 1 and config["eos_token_id"] == 2
    )
    encoder = recipe.model.architecture.endswith("bert")
    kind = "ForMaskedLM" if encoder and "full" in recipe.attentions else "LM"
    assert kind in type(model).__name__
    batch = batch_of(ids_of(2), causal=recipe.attentions == ("causal",))
    assert compute_hidden_states(model.eval(), batch).shape == (2, WIDTH, 32)


def test_the_seed_makes_the_weights() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return (
            build_model(spec_of("gpt-bert"), VOCABULARY, masked=True)
            .get_input_embeddings()
            .weight.detach()
        )

    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))
