"""A bf16 body's LM head in bf16 too, without what that would cost: the logits that are asked for
stay fp32.

Of the logits of a position a score needs one by itself, and all others only in the sum that
normalises. Rounded to bf16 the one would be off by 0.03, more than the whole body is; in the sum
the errors of thousands of logits cancel. So the one is a product of its own, in fp32, and takes the
rounded one's place in the sum. And a constant taken off all logits of a position changes no
probability: without the mean of its rows a head's logits are smaller, and rounded less.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from antlm_bench.scoring.cpu_kernels import PackedLinear
from antlm_bench.scoring.engine import Engine, fast_logsumexp
from antlm_bench.types import WORD_START_TARGET


class Bf16LMHead(nn.Module):  # type: ignore[misc]
    """An output embedding (v, d) that answers in bf16 and remembers what it was asked."""

    def __init__(self, plain: nn.Linear, rows: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            plain.weight.float() - plain.weight.float().mean(0), requires_grad=False
        )
        self.bias = (
            None if plain.bias is None else nn.Parameter(plain.bias.float(), requires_grad=False)
        )
        rough = nn.Linear(
            plain.in_features, plain.out_features, plain.bias is not None, dtype=torch.bfloat16
        )
        rough.weight.data.copy_(self.weight)
        if self.bias is not None:
            rough.bias.data.copy_(self.bias)
        self.bf16_linear = PackedLinear(rough, rows)
        self.last_hidden = torch.empty(0)

    def forward(self, hidden: Tensor) -> Tensor:
        self.last_hidden = hidden.reshape(-1, hidden.shape[-1])
        return self.bf16_linear(hidden)

    def fp32_logits(self, rows: Tensor, target: Tensor) -> Tensor:
        """The fp32 logits (k,) of targets at rows `head` of what was last asked."""
        logits = (self.last_hidden[rows].float() * self.weight[target]).sum(-1)
        return logits if self.bias is None else logits + self.bias[target]


class Bf16HeadEngine(Engine):
    """An Engine around a model whose output embedding is a RoughHead."""

    def _target_logprobs(
        self, logits: Tensor, read_index: Tensor, target: Tensor, word_start_ids: Tensor | None
    ) -> Tensor:
        if word_start_ids is not None and bool((target == WORD_START_TARGET).any()):
            raise AssertionError("adaptive precision asks about choices, never about words")
        rough = logits[read_index, target].float()
        exact = self.model.get_output_embeddings().fp32_logits(read_index, target)
        total = fast_logsumexp(logits)[read_index]
        total = total + torch.log1p((exact - total).exp() - (rough - total).exp())
        return exact - total


def has_plain_lm_head(engine: Engine) -> bool:
    """Whether a model's logits are what its output embedding says, and nothing is done to them
    afterwards.
    """
    model, said = engine.model, list[Tensor]()
    engine.set_attention(engine.forward_config.native_implementation)
    hook = model.get_output_embeddings().register_forward_hook(
        lambda _module, _inputs, output: said.append(output)
    )
    try:
        ids = torch.arange(4, device=next(model.parameters()).device)[None]
        with torch.inference_mode():
            logits = model(input_ids=ids).logits
    finally:
        hook.remove()
    return (
        len(said) == 1
        and said[0].shape == logits.shape
        and torch.equal(said[0].to(logits.dtype), logits)
    )
