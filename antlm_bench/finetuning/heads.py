"""A body with a classifier on it: one state per text, and logits from it.

Pooling is a convention that moves a score. A causal body is read at the last token, the only one that has seen the
whole text (Radford et al. 2018); full attention at the first, where the rows begin with a special token (BERT, arXiv
1810.04805), else at the mean of all tokens. BabyLM 2025's script reads the first token of causal models too, and so
does a preset that says `pooling = "first"`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from antlm_bench.checkpoints import Body
from antlm_bench.errors import UsageError
from antlm_bench.finetuning.batches import Padded
from antlm_bench.finetuning.data import frame
from antlm_bench.training.dropout import key
from antlm_bench.training.model_factory import attended, key_dropout
from antlm_bench.types import Attention

POOLINGS = ("auto", "last", "first", "mean")


def pooling_of(body: Body, attention: Attention, wanted: str, preset: str = "auto") -> str:
    """Return last, first or mean: as `wanted` (--pooling), else as the preset says, else by attention.

    Raises UsageError for an unknown name, and where --pooling wants the first token of a causal row.
    """
    if wanted not in POOLINGS:
        raise UsageError(f"unknown pooling {wanted!r}", place="--pooling", hint=f"one of {', '.join(POOLINGS)}")
    if attention == "causal" and wanted == "first":
        hint = "last or mean; the official recipe reads it: --compat babylm-2025"
        raise UsageError("the first token of a causal row has seen nothing but itself", place="--pooling", hint=hint)
    if wanted != "auto":
        return wanted
    if preset != "auto":
        return preset
    if attention == "causal":
        return "last"
    return "first" if frame(body, attention).before else "mean"


class Head(nn.Sequential):  # type: ignore[misc]
    """norm, linear, GELU, norm, dropout, linear, the norms without weights: the classifier of BabyLM 2025's pipeline.

    (b, d) -> (b, classes). Weights: a truncated normal of std sqrt(2 / (5 d)), cut at two std, keyed by seed; biases 0.
    uniform: weights and biases uniform in +-1/sqrt(d), as torch.nn.Linear draws them with torch's `seed`.
    """

    def __init__(self, width: int, classes: int, dropout: float, seed: int, *, uniform: bool = False) -> None:
        super().__init__(
            nn.LayerNorm(width, elementwise_affine=False),
            nn.Linear(width, width),
            nn.GELU(),
            nn.LayerNorm(width, elementwise_affine=False),
            nn.Dropout(dropout),
            nn.Linear(width, classes),
        )
        if uniform:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self[1].reset_parameters()
                self[5].reset_parameters()
            return
        dice, std = torch.Generator().manual_seed(seed), math.sqrt(2 / (5 * width))
        for linear in (self[1], self[5]):
            nn.init.trunc_normal_(linear.weight, std=std, a=-2 * std, b=2 * std, generator=dice)
            nn.init.zeros_(linear.bias)


# What comes after the mixing of positions, by its name in a layer: the attention's projection, the feed-forward.
NARROWED: dict[str, type[nn.Module]] = {
    "o_proj": nn.Linear, "output": nn.Linear, "mlp": nn.Module, "feed_forward": nn.Module,
}  # fmt: skip


class Classifier(nn.Module):  # type: ignore[misc]
    """Padded rows -> logits (b, classes). `body`: a model of hidden states; natively: which way that attends."""

    def __init__(self, body: Any, head: Head, *, natively: Attention, attention: Attention, pooling: str) -> None:
        super().__init__()
        self.body, self.head = body, head
        self.natively, self.attention, self.pooling = natively, attention, pooling
        self.read: Tensor | None = None  # (b,) the place that is read of each row, while a narrowed forward runs
        self.narrows = pooling != "mean" and self._narrow()

    def _narrow(self) -> bool:
        """Past its attention nothing in the last layer mixes positions: the rest need only see what is read.

        Where the layer holds that as modules of one input and output (see NARROWED); found by trying, as everything
        about a foreign model. A keyed dropout inside then draws for the one position of each text.
        """
        stacks = [module for module in self.body.modules() if isinstance(module, nn.ModuleList)]
        last = stacks[-1][-1] if stacks and len(stacks[-1]) else nn.Identity()
        found: dict[str, nn.Module] = {}
        for name, module in last.named_modules():
            inside = any(name.startswith(f"{other}.") for other in found)
            if not inside and isinstance(module, NARROWED.get(name.rpartition(".")[2], ())):
                found[name] = module
        for module in found.values():
            module.forward = partial(self._narrowed, module.forward)
        if not found:
            return False
        device = next(self.body.parameters()).device
        ids, lengths = torch.ones(2, 3, dtype=torch.long, device=device), torch.tensor([2, 3], device=device)
        probe = Padded(ids, lengths, None, whole=False)
        self.eval()
        with torch.inference_mode():
            self.narrows = False
            expected = self.pooled(probe)
            self.narrows = True
            narrow = self.pooled(probe)
        self.train()
        return bool(torch.allclose(narrow, expected, rtol=1e-4, atol=1e-4))

    def _narrowed(self, whole: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """What a module gives where something is read, and zeros elsewhere: (b, t, d) -> (b, t, d)."""
        if self.read is None:
            return whole(x)
        rows = torch.arange(len(x), device=x.device)
        found = whole(x[rows, self.read])
        return found.new_zeros(*x.shape[:2], found.shape[-1]).index_put((rows, self.read), found)

    def forward(self, rows: Padded) -> Tensor:
        return self.head(self.pooled(rows))

    def pooled(self, rows: Padded) -> Tensor:
        """(b, d). Padding, on the right, is seen by nobody: not in causal rows, and elsewhere the mask hides it."""
        mask = None
        if self.attention == "full" and not rows.whole:
            mask = rows.text()
            if self.natively == "causal":
                mask = mask[:, None, None, :].expand(-1, 1, mask.shape[1], -1)
        more = {} if rows.types is None else {"token_type_ids": rows.types}
        causal, natively = self.attention == "causal", self.natively == "causal"
        read = rows.lengths - 1 if self.pooling == "last" else torch.zeros_like(rows.lengths)
        try:
            self.read = read if self.narrows else None
            hidden = attended(self.body, rows.ids, mask, causal=causal, natively=natively, **more)
        finally:
            self.read = None
        if self.pooling == "mean":
            text = rows.text()[..., None]
            return (hidden * text).sum(1) / rows.lengths[:, None]
        return hidden[torch.arange(len(hidden), device=hidden.device), read]


def classifier(
    body: Body,
    attention: Attention,
    pooling: str,
    classes: int,
    dropout: float,
    seed: int,
    lora: int = 0,
    uniform: bool = False,
) -> Classifier:
    """A copy of the body with a new head, its dropout keyed (see training.dropout).

    lora: rank of adapters, 0 = train all weights. uniform: see Head. Raises UsageError where peft is not installed.
    """
    model = copy.deepcopy(body.model)
    with torch.inference_mode():
        width = model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device))[0].shape[-1]
    if lora:
        _adapt(model, lora, seed)
    key_dropout(model)
    head = Head(width, classes, dropout, seed, uniform=uniform)
    key(head)
    return Classifier(model, head, natively=body.natively, attention=attention, pooling=pooling)


def _adapt(model: Any, rank: int, seed: int) -> None:
    """Freeze the model; low-rank adapters (arXiv 2106.09685) on all its linear layers, alpha twice the rank."""
    try:
        import peft
    except ImportError as error:
        hint = "pip install 'antlm-bench[lora]'"
        raise UsageError("low-rank adapters need peft", place="--lora", hint=hint) from error
    transposed = [name for name, module in model.named_modules() if type(module).__name__ == "Conv1D"]  # GPT-2's
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    config = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=linear + transposed,
        fan_in_fan_out=bool(transposed),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, model.requires_grad_(False))
