"""Run the LM head of a model in bf16 or int8, but compute the target logits in fp32.

A log-probability needs the logit of the target, and all other logits only in a sum. In bf16, the
target logit is off by about 0.03, which is more than the error of all layers before the LM head; in
the sum, the errors of thousands of logits cancel. So the target logit is computed in fp32, and
replaces the bf16 one in the sum. The mean of the head's rows is subtracted from them, which changes
no probability and makes logits smaller, so that bf16 rounds them less. An Int8LMHead does the same
in int8.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from antlm_bench.scoring.cpu_kernels import PackedLinear
from antlm_bench.scoring.engine import Engine
from antlm_bench.scoring.int8_linear import Int8Linear, QuantizedInput
from antlm_bench.scoring.logit_readers import fast_logsumexp


class Bf16LMHead(nn.Module):  # type: ignore[misc]
    """An output embedding (v, d) that computes in bf16 and keeps its last input for
    `fp32_logits`.
    """

    def __init__(self, plain: nn.Linear, rows: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            plain.weight.float() - plain.weight.float().mean(0), requires_grad=False
        )
        self.bias = (
            None if plain.bias is None else nn.Parameter(plain.bias.float(), requires_grad=False)
        )
        linear = nn.Linear(plain.in_features, plain.out_features, plain.bias is not None)
        linear.weight.data.copy_(self.weight)
        if self.bias is not None:
            linear.bias.data.copy_(self.bias)
        self.fast_linear = self._make_fast_linear(linear, rows)
        self.last_hidden = torch.empty(0)

    @staticmethod
    def _make_fast_linear(plain: nn.Linear, rows: int) -> nn.Module:
        return PackedLinear(plain.bfloat16(), rows)

    def forward(self, hidden: Tensor) -> Tensor:
        self.last_hidden = hidden.reshape(-1, hidden.shape[-1])
        return self.fast_linear(hidden)

    def fp32_logits(self, rows: Tensor, target: Tensor) -> Tensor:
        """Return the fp32 logits (k,) of ids `target` (k,) at `rows` (k,) of the last input."""
        logits = (self.last_hidden[rows].float() * self.weight[target]).sum(-1)
        return logits if self.bias is None else logits + self.bias[target]


class Int8LMHead(Bf16LMHead):
    """A Bf16LMHead that computes in int8."""

    @staticmethod
    def _make_fast_linear(plain: nn.Linear, rows: int) -> nn.Module:
        return Int8Linear(plain, rows, QuantizedInput())


class Bf16HeadEngine(Engine):
    """An Engine for a model whose output embedding is a Bf16LMHead or an Int8LMHead."""

    def _target_logprobs(
        self,
        logits: Tensor,
        read_index: Tensor,
        target: Tensor,
        token_sets: Mapping[int, Tensor],
    ) -> Tensor:
        assert not token_sets, "adaptive precision scores choices, never words"
        bf16_logits = logits[read_index, target].float()
        fp32_logits = self.model.get_output_embeddings().fp32_logits(read_index, target)
        log_sum = fast_logsumexp(logits)[read_index]
        change = (fp32_logits - log_sum).exp() - (bf16_logits - log_sum).exp()
        return fp32_logits - (log_sum + torch.log1p(change))


def has_plain_lm_head(engine: Engine) -> bool:
    """Return whether a model's logits are the unchanged output of its output embedding."""
    model = engine.model
    outputs: list[Tensor] = []
    engine.set_attention(engine.forward_config.native_implementation)
    hook = model.get_output_embeddings().register_forward_hook(
        lambda _module, _inputs, output: outputs.append(output)
    )
    try:
        ids = torch.arange(4, device=engine.device)[None]
        with torch.inference_mode():
            logits = model(input_ids=ids).logits
    finally:
        hook.remove()
    if len(outputs) != 1 or outputs[0].shape != logits.shape:
        return False
    return bool(torch.equal(outputs[0].to(logits.dtype), logits))
