"""Build a model from its declaration, and compute the hidden states that its LM head needs.

The LM head is the largest matrix of a small model, and a masked objective has a target at only one
position in seven. So the head does not run inside the model: the training loop applies it only at
positions with a target.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, cast

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from antlm_bench.architectures.records import ARCHITECTURES, find_architecture
from antlm_bench.errors import DeclarationError
from antlm_bench.scoring.cpu_kernels import RotaryPatch
from antlm_bench.scoring.devices import to_device
from antlm_bench.training import dropout
from antlm_bench.training.corpus import BOS_ID, EOS_ID, PAD_ID
from antlm_bench.training.dropout import keyed_dropout_attention as keyed_attention
from antlm_bench.training.objectives import TrainingBatch
from antlm_bench.training.recipe import ModelSpec


def build_model(spec: ModelSpec, vocab_size: int, masked: bool) -> Any:
    """Build a model with random weights from torch's global generator.

    masked: build an encoder as a masked LM, else as a causal LM (the weights have the same names).
    Raises DeclarationError if the configuration class refuses the shape.
    """
    architecture = ARCHITECTURES[spec.architecture]
    settings = {
        "vocab_size": vocab_size,
        "pad_token_id": PAD_ID,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "tie_word_embeddings": spec.tied,
        **architecture.config_settings(spec),
    }
    try:
        config = architecture.load_class("AutoConfig")(**settings)
        return architecture.load_model_class(masked)(config)
    except ValueError as error:
        raise DeclarationError(str(error), location="model") from error


def hidden_states_at_targets(
    model: Any, batch: TrainingBatch, all_positions: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the inputs (n, d) of the output embedding at positions with a target, and targets
    (n,).

    all_positions: return all n = b x t positions; targets are negative at positions without one.
    """
    device = model.get_input_embeddings().weight.device
    targets = torch.from_numpy(batch.targets).flatten()
    is_selected = np.full(batch.targets.shape, True) if all_positions else batch.targets >= 0
    indices = torch.from_numpy(is_selected).flatten().nonzero()[:, 0]
    hidden = compute_hidden_states(model, batch).flatten(0, 1)
    hidden = hidden.index_select(0, to_device(indices, device))
    if hasattr(model, "head"):  # encoders: layers between hidden states and output embedding
        rows_per_sample = is_selected.sum(1).tolist()
        with dropout.gathered_positions(rows_per_sample) if model.training else nullcontext():
            hidden = model.head.transform(hidden)
    return hidden, to_device(targets[indices], device)


def compute_hidden_states(model: Any, batch: TrainingBatch) -> Tensor:
    """Return hidden states (b, t, d), with the attention direction and documents of the batch."""
    device = model.get_input_embeddings().weight.device
    mask = batch.attention_mask()
    model_inputs = {}
    architecture = find_architecture(model.config.model_type)
    if architecture is not None and architecture.learned_positions:
        # Positions restart at 0 in every document.
        model_inputs["position_ids"] = to_device(batch.position_ids, device)
    return forward_with_mask(
        model.base_model,
        to_device(batch.input_ids, device),
        None if mask is None else to_device(mask, device),
        causal=batch.causal,
        natively_causal=is_natively_causal(model),
        **model_inputs,
    )


def forward_with_mask(
    backbone: Any,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    *,
    causal: bool,
    natively_causal: bool,
    **model_inputs: Tensor,
) -> Tensor:
    """Return hidden states (b, t, d) of ids (b, t) with causal or full attention.

    causal: the attention direction, used only if there is no mask. attention_mask: None if every
    row is one document without padding; (b, t), 1 = token, 0 = padding, for a natively
    bidirectional backbone; or (b, 1, t, t), which also sets the direction. natively_causal: whether
    the backbone is causal without a mask. model_inputs: further inputs of the backbone.
    """
    if attention_mask is None and causal != natively_causal:
        shape = (1, 1, input_ids.shape[1], input_ids.shape[1])
        attention_mask = torch.ones(shape, dtype=torch.bool, device=input_ids.device)
        if causal:
            attention_mask = attention_mask.tril()
    inputs: dict[str, Any] = {"input_ids": input_ids, **model_inputs}
    if attention_mask is not None:
        inputs["attention_mask"] = attention_mask
    if hasattr(backbone.config, "use_cache"):
        inputs["use_cache"] = False
    with RotaryPatch.for_model(backbone).active():
        hidden: Tensor = backbone(**inputs)[0]
    return hidden


KEYED_ATTENTION = "antlm_keyed"  # name of `_keyed_attention_forward` in transformers' registry


def use_keyed_dropout(model: Any) -> None:
    """Replace all dropout of a model by keyed dropout (see `dropout`).

    This includes attention dropout, for which transformers has a rate but no module.
    """
    dropout.replace_dropout_modules(model)
    if model.config._attn_implementation == "sdpa" and model._supports_sdpa:
        transformers.AttentionInterface.register(KEYED_ATTENTION, _keyed_attention_forward)
        transformers.AttentionMaskInterface.register(KEYED_ATTENTION, sdpa_mask)
        model.set_attn_implementation(KEYED_ATTENTION)


def _keyed_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Run transformers' SDPA attention, or matrix products and a softmax: with dropout, whose masks
    are keyed, and in bf16 on a CPU, where they are faster.
    """
    use_products = bool(dropout) or _multiplies_in_bf16_on_cpu(query)
    if not use_products or kwargs.get("position_bias") is not None:
        return cast(
            tuple[Tensor, None],
            sdpa_attention_forward(module, query, key, value, attention_mask, dropout, **kwargs),
        )
    is_causal = kwargs.get("is_causal")
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    causal = attention_mask is None and query.shape[2] > 1 and is_causal  # as transformers does
    context = keyed_attention(
        query, key, value, attention_mask, p=dropout, scaling=kwargs.get("scaling"), causal=causal
    )
    return context.transpose(1, 2).contiguous(), None


def _multiplies_in_bf16_on_cpu(x: Tensor) -> bool:
    """Return whether matrix products of x run in bf16 on a CPU.

    There, torch's fused attention takes 3 to 14 times as long as two products and a softmax,
    forward and backward, for rows of 16 to 256 tokens (docs/explanation/benchmarks.md).
    """
    if x.device.type != "cpu":
        return False
    if torch.is_autocast_enabled("cpu"):
        return bool(torch.get_autocast_dtype("cpu") == torch.bfloat16)
    return bool(x.dtype == torch.bfloat16)


def is_natively_causal(model: Any) -> bool:
    """Return whether the model is causal without a mask.

    The encoders of this package have the attribute `causal`; models of transformers without it are
    decoders.
    """
    return bool(getattr(model.base_model, "causal", True))


def lm_head_parameters(model: Any) -> tuple[nn.Parameter, nn.Parameter | None]:
    """Return the weight (V, d) and the bias (V,), or None, of the output embedding."""
    layer = model.get_output_embeddings()
    return layer.weight, layer.bias
