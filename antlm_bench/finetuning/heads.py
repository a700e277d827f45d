"""A body with a classifier on it: one state per text, and logits from it.

Pooling is a convention that moves a score. A causal body is read at the last token, the only one
that has seen the whole text (Radford et al. 2018); full attention at the first, where the rows
begin with a special token (BERT, arXiv 1810.04805), else at the mean of all tokens. BabyLM 2025's
script reads the first token of causal models too, and so does a preset that says `pooling =
"first"`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from antlm_bench.checkpoints import Backbone
from antlm_bench.errors import UsageError
from antlm_bench.finetuning.batches import PaddedBatch
from antlm_bench.finetuning.data import resolve_special_tokens
from antlm_bench.training.dropout import replace_dropout_modules
from antlm_bench.training.model_factory import forward_with_mask, use_keyed_dropout
from antlm_bench.types import Attention

POOLINGS = ("auto", "last", "first", "mean")


def resolve_pooling(
    backbone: Backbone, attention: Attention, pooling: str, preset: str = "auto"
) -> str:
    """Return last, first or mean: as `wanted` (--pooling), else as the preset says, else by
    attention.

    Raises UsageError for an unknown name, and where --pooling wants the first token of a causal
    row.
    """
    if pooling not in POOLINGS:
        raise UsageError(
            f"unknown pooling {pooling!r}",
            location="--pooling",
            hint=f"one of {', '.join(POOLINGS)}",
        )
    if attention == "causal" and pooling == "first":
        hint = "last or mean; the official recipe reads it: --compat babylm-2025"
        raise UsageError(
            "the first token of a causal row has seen nothing but itself",
            location="--pooling",
            hint=hint,
        )
    if pooling != "auto":
        return pooling
    if preset != "auto":
        return preset
    if attention == "causal":
        return "last"
    return "first" if resolve_special_tokens(backbone, attention).before else "mean"


class ClassificationHead(nn.Sequential):  # type: ignore[misc]
    """norm, linear, GELU, norm, dropout, linear, the norms without weights: the classifier of
    BabyLM 2025's pipeline.

    (b, d) -> (b, classes). Weights: a truncated normal of std sqrt(2 / (5 d)), cut at two std,
    keyed by seed; biases 0. uniform: weights and biases uniform in +-1/sqrt(d), as torch.nn.Linear
    draws them with torch's `seed`.
    """

    def __init__(
        self,
        hidden_size: int,
        num_classes: int,
        dropout: float,
        seed: int,
        *,
        uniform_init: bool = False,
    ) -> None:
        super().__init__(
            nn.LayerNorm(hidden_size, elementwise_affine=False),
            nn.Linear(hidden_size, hidden_size),
            nn.GELU(),
            nn.LayerNorm(hidden_size, elementwise_affine=False),
            nn.Dropout(dropout),
            nn.Linear(hidden_size, num_classes),
        )
        if uniform_init:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self[1].reset_parameters()
                self[5].reset_parameters()
            return
        dice, std = torch.Generator().manual_seed(seed), math.sqrt(2 / (5 * hidden_size))
        for linear in (self[1], self[5]):
            nn.init.trunc_normal_(linear.weight, std=std, a=-2 * std, b=2 * std, generator=dice)
            nn.init.zeros_(linear.bias)


# What comes after the mixing of positions, by its name in a layer: the attention's projection, the
# feed-forward.
POSITIONWISE_MODULES: dict[str, type[nn.Module]] = {
    "o_proj": nn.Linear, "output": nn.Linear, "mlp": nn.Module, "feed_forward": nn.Module,
}  # fmt: skip


class Classifier(nn.Module):  # type: ignore[misc]
    """Padded rows -> logits (b, classes). `body`: a model of hidden states; natively: which way
    that attends.
    """

    def __init__(
        self,
        backbone: Any,
        head: ClassificationHead,
        *,
        native_attention: Attention,
        attention: Attention,
        pooling: str,
    ) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.native_attention, self.attention, self.pooling = native_attention, attention, pooling
        self.read_positions: Tensor | None = (
            None  # (b,) the place that is read of each row, while a narrowed forward runs
        )
        self.narrows_last_layer = pooling != "mean" and self._narrow_last_layer()

    def _narrow_last_layer(self) -> bool:
        """Past its attention nothing in the last layer mixes positions: the rest need only see what
        is read.

        Where the layer holds that as modules of one input and output (see NARROWED); found by
        trying, as everything about a foreign model. A keyed dropout inside then draws for the one
        position of each text.
        """
        stacks = [module for module in self.backbone.modules() if isinstance(module, nn.ModuleList)]
        last = stacks[-1][-1] if stacks and len(stacks[-1]) else nn.Identity()
        found: dict[str, nn.Module] = {}
        for name, module in last.named_modules():
            inside = any(name.startswith(f"{other}.") for other in found)
            if not inside and isinstance(
                module, POSITIONWISE_MODULES.get(name.rpartition(".")[2], ())
            ):
                found[name] = module
        for module in found.values():
            module.forward = partial(self._forward_read_positions, module.forward)
        if not found:
            return False
        device = next(self.backbone.parameters()).device
        ids, lengths = (
            torch.ones(2, 3, dtype=torch.long, device=device),
            torch.tensor([2, 3], device=device),
        )
        probe = PaddedBatch(ids, lengths, None, unpadded=False)
        self.eval()
        with torch.inference_mode():
            self.narrows_last_layer = False
            expected = self.pool_hidden_states(probe)
            self.narrows_last_layer = True
            narrow = self.pool_hidden_states(probe)
        self.train()
        return bool(torch.allclose(narrow, expected, rtol=1e-4, atol=1e-4))

    def _forward_read_positions(
        self, module_forward: Callable[[Tensor], Tensor], x: Tensor
    ) -> Tensor:
        """What a module gives where something is read, and zeros elsewhere: (b, t, d) -> (b, t, d).
        """
        if self.read_positions is None:
            return module_forward(x)
        rows = torch.arange(len(x), device=x.device)
        found = module_forward(x[rows, self.read_positions])
        return found.new_zeros(*x.shape[:2], found.shape[-1]).index_put(
            (rows, self.read_positions), found
        )

    def forward(self, batch: PaddedBatch) -> Tensor:
        return self.head(self.pool_hidden_states(batch))

    def pool_hidden_states(self, batch: PaddedBatch) -> Tensor:
        """(b, d). Padding, on the right, is seen by nobody: not in causal rows, and elsewhere the
        mask hides it.
        """
        mask = None
        if self.attention == "full" and not batch.unpadded:
            mask = batch.token_mask()
            if self.native_attention == "causal":
                mask = mask[:, None, None, :].expand(-1, 1, mask.shape[1], -1)
        more = {} if batch.token_type_ids is None else {"token_type_ids": batch.token_type_ids}
        causal, natively = self.attention == "causal", self.native_attention == "causal"
        read = batch.lengths - 1 if self.pooling == "last" else torch.zeros_like(batch.lengths)
        try:
            self.read_positions = read if self.narrows_last_layer else None
            hidden = forward_with_mask(
                self.backbone, batch.ids, mask, causal=causal, natively_causal=natively, **more
            )
        finally:
            self.read_positions = None
        if self.pooling == "mean":
            text = batch.token_mask()[..., None]
            return (hidden * text).sum(1) / batch.lengths[:, None]
        return hidden[torch.arange(len(hidden), device=hidden.device), read]


def build_classifier(
    backbone: Backbone,
    attention: Attention,
    pooling: str,
    num_classes: int,
    dropout: float,
    seed: int,
    lora_rank: int = 0,
    uniform_init: bool = False,
) -> Classifier:
    """A copy of the body with a new head, its dropout keyed (see training.dropout).

    lora: rank of adapters, 0 = train all weights. uniform: see Head. Raises UsageError where peft
    is not installed.
    """
    model = copy.deepcopy(backbone.model)
    with torch.inference_mode():
        width = model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device))[0].shape[
            -1
        ]
    if lora_rank:
        _add_lora_adapters(model, lora_rank, seed)
    use_keyed_dropout(model)
    head = ClassificationHead(width, num_classes, dropout, seed, uniform_init=uniform_init)
    replace_dropout_modules(head)
    return Classifier(
        model,
        head,
        native_attention=backbone.native_attention,
        attention=attention,
        pooling=pooling,
    )


def _add_lora_adapters(model: Any, rank: int, seed: int) -> None:
    """Freeze the model; low-rank adapters (arXiv 2106.09685) on all its linear layers, alpha twice
    the rank.
    """
    try:
        import peft
    except ImportError as error:
        hint = "pip install 'antlm-bench[lora]'"
        raise UsageError("low-rank adapters need peft", location="--lora", hint=hint) from error
    transposed = [
        name for name, module in model.named_modules() if type(module).__name__ == "Conv1D"
    ]  # GPT-2's
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    config = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=linear + transposed,
        fan_in_fan_out=bool(transposed),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, model.requires_grad_(False))
