"""Pool a backbone's hidden states to one vector per text, and classify it.

The pooling rule changes scores, so it is explicit. With causal attention, the vector of a text is
the hidden state of its last token, because no other token attends to the whole text (Radford et al.
2018). With full attention, it is the hidden state of the first token if the tokenizer puts a
special token there ([CLS] of BERT, arXiv 1810.04805), else the mean over all tokens. BabyLM 2025's
script uses the first token for causal models, too; the preset babylm-2025 has `pooling = "first"`.
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
from antlm_bench.packages import require_packages
from antlm_bench.training.dropout import replace_dropout_modules
from antlm_bench.training.model_factory import forward_with_mask, use_keyed_dropout
from antlm_bench.types import Attention

POOLINGS = ("auto", "last", "first", "mean")


def resolve_pooling(
    backbone: Backbone, attention: Attention, pooling: str, preset_pooling: str = "auto"
) -> str:
    """Return "last", "first" or "mean".

    pooling: value of --pooling. preset_pooling: the preset's value, used if `pooling` is "auto". If
    both are "auto", the attention decides. Raises UsageError for an unknown name, and for
    `--pooling first` with causal attention.
    """
    if pooling not in POOLINGS:
        raise UsageError(
            f"unknown pooling {pooling!r}",
            location="--pooling",
            hint=f"one of {', '.join(POOLINGS)}",
        )
    if attention == "causal" and pooling == "first":
        raise UsageError(
            "'first' cannot be used with causal attention: the first token attends only to itself",
            location="--pooling",
            hint="last or mean; the official recipe reads the first token: --compat babylm-2025",
        )
    if pooling != "auto":
        return pooling
    if preset_pooling != "auto":
        return preset_pooling
    if attention == "causal":
        return "last"
    return "first" if resolve_special_tokens(backbone, attention).before else "mean"


class ClassificationHead(nn.Sequential):  # type: ignore[misc]
    """The classification head of BabyLM 2025's pipeline, (b, d) -> (b, num_classes).

    Its layers: layer norm, linear, GELU, layer norm, dropout, linear. The norms have no weights.
    Weights are drawn with `seed` from a truncated normal with std sqrt(2 / (5 d)), cut at two std;
    biases are 0. With `uniform_init`, weights and biases are uniform in +-1/sqrt(d), as
    torch.nn.Linear draws them.
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
        generator = torch.Generator().manual_seed(seed)
        std = math.sqrt(2 / (5 * hidden_size))
        for linear in (self[1], self[5]):
            nn.init.trunc_normal_(
                linear.weight, std=std, a=-2 * std, b=2 * std, generator=generator
            )
            nn.init.zeros_(linear.bias)


POSITIONWISE_MODULES: dict[str, type[nn.Module]] = {
    "o_proj": nn.Linear,  # the attention's output projection in Llama
    "output": nn.Linear,  # the same in our LTG-BERT and GPT-BERT; BERT's `output` is no nn.Linear
    "mlp": nn.Module,  # the feed-forward network of Llama and GPT-2
    "feed_forward": nn.Module,  # the same in our LTG-BERT and GPT-BERT
}
"""Last part of a module's name -> its type. The output of these modules at a position depends only
on their input at that position."""


class PooledBackbone(nn.Module):  # type: ignore[misc]
    """A backbone that returns one vector per text: padded rows -> (b, d).

    To save time, the position-wise modules of the last layer run only at the positions that pooling
    uses, if the model allows it (see `_restrict_last_layer`). This changes the backbone's modules,
    so pass a copy. native_attention: attention of the pretrained model. attention: attention with
    which it is finetuned.
    """

    def __init__(
        self, backbone: Any, *, native_attention: Attention, attention: Attention, pooling: str
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.native_attention, self.attention, self.pooling = native_attention, attention, pooling
        self.pooled_positions: Tensor | None = None
        """(b,) the position in each row that pooling uses; None outside of pool_hidden_states."""
        self.last_layer_is_restricted = pooling != "mean" and self._restrict_last_layer()

    def _restrict_last_layer(self) -> bool:
        """Restrict the last layer's position-wise modules to the positions that pooling uses.

        Return False if the layer has no modules of POSITIONWISE_MODULES, or if the vectors of a
        trial batch differ from those of the unrestricted layer. Dropout in the restricted modules
        draws its mask for one position per text.
        """
        stacks = [module for module in self.backbone.modules() if isinstance(module, nn.ModuleList)]
        last_layer = stacks[-1][-1] if stacks and len(stacks[-1]) else nn.Identity()
        restricted: dict[str, nn.Module] = {}
        for name, module in last_layer.named_modules():
            is_nested = any(name.startswith(f"{other}.") for other in restricted)
            expected_type = POSITIONWISE_MODULES.get(name.rpartition(".")[2], ())
            if not is_nested and isinstance(module, expected_type):
                restricted[name] = module
        if not restricted:
            return False
        for module in restricted.values():
            module.forward = partial(self._forward_at_pooled_positions, module.forward)
        device = next(self.backbone.parameters()).device
        ids = torch.ones(2, 3, dtype=torch.long, device=device)
        lengths = torch.tensor([2, 3], device=device)
        batch = PaddedBatch(ids, lengths, token_type_ids=None, has_padding=True)
        self.eval()
        with torch.inference_mode():
            # While this is False, the replaced `forward` methods compute all positions.
            self.last_layer_is_restricted = False
            expected = self.pool_hidden_states(batch)
            self.last_layer_is_restricted = True
            actual = self.pool_hidden_states(batch)
        self.train()
        return bool(torch.allclose(actual, expected, rtol=1e-4, atol=1e-4))

    def _forward_at_pooled_positions(
        self, module_forward: Callable[[Tensor], Tensor], x: Tensor
    ) -> Tensor:
        """Apply a module to x (b, t, d) at the pooled positions. The output is 0 elsewhere."""
        if self.pooled_positions is None:
            return module_forward(x)
        rows = torch.arange(len(x), device=x.device)
        output = module_forward(x[rows, self.pooled_positions])
        zeros = output.new_zeros(*x.shape[:2], output.shape[-1])
        return zeros.index_put((rows, self.pooled_positions), output)

    def forward(self, batch: PaddedBatch) -> Tensor:
        return self.pool_hidden_states(batch)

    def pool_hidden_states(self, batch: PaddedBatch) -> Tensor:
        """Return one vector per row, (b, d).

        No token sees padding: in causal rows it comes after all tokens, and under full attention a
        mask hides it.
        """
        mask = None
        if self.attention == "full" and batch.has_padding:
            mask = batch.token_mask()
            if self.native_attention == "causal":
                # With a (b, t) mask, a causal backbone would stay causal.
                mask = mask[:, None, None, :].expand(-1, 1, mask.shape[1], -1)
        model_inputs = {}
        if batch.token_type_ids is not None:
            model_inputs["token_type_ids"] = batch.token_type_ids
        positions = batch.lengths - 1 if self.pooling == "last" else torch.zeros_like(batch.lengths)
        try:
            self.pooled_positions = positions if self.last_layer_is_restricted else None
            hidden = forward_with_mask(
                self.backbone,
                batch.ids,
                mask,
                causal=self.attention == "causal",
                natively_causal=self.native_attention == "causal",
                **model_inputs,
            )
        finally:
            self.pooled_positions = None
        if self.pooling == "mean":
            is_token = batch.token_mask()[..., None]
            return (hidden * is_token).sum(1) / batch.lengths[:, None]
        return hidden[torch.arange(len(hidden), device=hidden.device), positions]


class Classifier(PooledBackbone):
    """A pooled backbone with a classification head: padded rows -> logits (b, num_classes)."""

    def __init__(self, backbone: Any, head: ClassificationHead, **pooling_options: Any) -> None:
        super().__init__(backbone, **pooling_options)
        self.head = head

    def forward(self, batch: PaddedBatch) -> Tensor:
        return self.head(self.pool_hidden_states(batch))


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
    """Build a classifier on a copy of the backbone, with keyed dropout.

    The masks of keyed dropout are a function of seed, step and row (training.dropout).

    lora_rank: rank of adapters that are trained instead of the weights; 0 = train all weights.
    uniform_init: see ClassificationHead. Raises UsageError if peft is needed and not installed.
    """
    model = copy.deepcopy(backbone.model)
    with torch.inference_mode():
        one_token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        hidden_size = model(input_ids=one_token)[0].shape[-1]
    if lora_rank:
        _add_lora_adapters(model, lora_rank, seed)
    use_keyed_dropout(model)
    head = ClassificationHead(hidden_size, num_classes, dropout, seed, uniform_init=uniform_init)
    replace_dropout_modules(head)
    return Classifier(
        model,
        head,
        native_attention=backbone.native_attention,
        attention=attention,
        pooling=pooling,
    )


def _add_lora_adapters(model: Any, rank: int, seed: int) -> None:
    """Freeze the model and add low-rank adapters (arXiv 2106.09685) to all its linear layers."""
    with require_packages("--lora"):
        import peft
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    # GPT-2's linear layers are Conv1D modules with transposed weights.
    conv1d = [name for name, module in model.named_modules() if type(module).__name__ == "Conv1D"]
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        target_modules=linear + conv1d,
        fan_in_fan_out=bool(conv1d),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, model.requires_grad_(False))
