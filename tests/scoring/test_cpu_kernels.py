"""Pieces in fewer passes say what the plain ones say, whatever the architecture; what would differ
stays plain.
"""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import nn

from antlm_bench.scoring.cpu_kernels import (
    ROTARY_FUNCTION_NAME,
    FusedActivation,
    FusedRMSNorm,
    PackedLinear,
    RotaryPatch,
    fuse_layers,
    pack_linears,
)


def counted(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


def both(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the plain model, and of the same with everything that can be fused."""
    ids = torch.randint(5, 60, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        plain = model.eval()(input_ids=ids).logits
        pack_linears(model, 64, 64)
        fuse_layers(model)
        with RotaryPatch.for_model(model).active():
            return plain, model(input_ids=ids).logits


# Activations and norms that each architecture has per layer, and files whose rotation is the one
# that is known.
EXPECTED = {
    "Llama": (1, 2, 1),
    "Qwen2": (1, 2, 1),
    "GPTNeoX": (1, 0, 1),
    "Bert": (1, 0, 0),
    "Roberta": (1, 0, 0),
}


def made(name: str) -> nn.Module:
    import transformers

    torch.manual_seed(0)
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "max_position_embeddings": 32,
    }
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
    config = getattr(transformers, f"{name}Config")(**sizes)
    suffix = "ForMaskedLM" if name in ("Bert", "Roberta") else "ForCausalLM"
    return getattr(transformers, name + suffix)(config)


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_fused_says_the_same(name: str) -> None:
    model = made(name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(
                0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
            )
    plain, own = both(model)
    assert torch.allclose(plain, own, rtol=1e-5, atol=1e-5 * float(plain.abs().max()))
    activations, norms, files = EXPECTED[name]
    head = (
        1 if name == "Bert" else 0
    )  # the transform before BERT's decoder; RoBERTa calls a function there
    assert counted(model, FusedActivation) == 2 * activations + head
    assert counted(model, FusedRMSNorm) == 2 * norms + bool(norms)
    assert len(RotaryPatch.for_model(model).replacements) == files


def test_a_norm_of_another_formula_stays_plain() -> None:
    import transformers

    config = transformers.GemmaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4, head_dim=8,
    )  # fmt: skip
    model = transformers.GemmaForCausalLM(config)  # 1 + weight
    plain, own = both(model)
    assert torch.allclose(plain, own, rtol=1e-5, atol=1e-5) and counted(model, FusedRMSNorm) == 0


class Twice(nn.Module):
    """Applies its activation to the sum of two layers: it follows neither."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.act = nn.Linear(8, 8), nn.Linear(8, 8), nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.one(x) + self.two(x))

    def get_output_embeddings(self) -> None:
        return None


def test_an_activation_after_no_single_layer_stays() -> None:
    module = Twice().eval()
    pack_linears(module, 8, 8)
    assert counted(module, PackedLinear) == 2 and fuse_layers(nn.ModuleList([module])) == 0
    assert (
        isinstance(module.act, nn.GELU)
        and module.one.activation is None
        and module.two.activation is None
    )


def test_a_copy_is_plain_again_and_says_the_same() -> None:
    model = made("Llama")
    both(model)
    again = copy.deepcopy(model)
    assert counted(again, FusedActivation) == counted(again, PackedLinear) == 0
    ids = torch.arange(5, 14)[None]
    with torch.inference_mode():
        assert torch.allclose(again(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-5)


def test_fast_rotation_ends_with_its_context_even_after_an_error() -> None:
    model = made("Llama")
    patch, calls = RotaryPatch.for_model(model), []
    [plain] = patch.replacements
    counting = RotaryPatch(
        {plain: lambda *args, **kwargs: calls.append(1) or plain(*args, **kwargs)}
    )
    with pytest.raises(KeyError), counting.active():
        model(input_ids=torch.arange(5, 9)[None])
        raise KeyError
    model(input_ids=torch.arange(5, 9)[None])
    assert len(calls) == model.config.num_hidden_layers


def test_the_library_file_is_changed_once_and_not_by_forwards() -> None:
    model, seen = made("Llama"), []
    file = sys.modules[type(model).__module__]
    patch = RotaryPatch.for_model(model)
    installed = getattr(file, ROTARY_FUNCTION_NAME)
    model.register_forward_hook(lambda *_: seen.append(getattr(file, ROTARY_FUNCTION_NAME)))
    with patch.active():
        model(input_ids=torch.arange(5, 9)[None])
    RotaryPatch.for_model(made("Llama"))
    assert seen == [installed] and getattr(file, ROTARY_FUNCTION_NAME) is installed


def test_other_dtypes_or_partial_heads_use_the_library_rotation() -> None:
    [(plain, quick)] = RotaryPatch.for_model(made("GPTNeoX")).replacements.items()
    q, k = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 3, 8)
    for width, dtype in ((4, torch.float32), (8, torch.float64)):
        cos, sin = torch.randn(1, 3, width, dtype=dtype), torch.randn(1, 3, width, dtype=dtype)
        assert all(
            torch.equal(a, b)
            for a, b in zip(plain(q, k, cos, sin), quick(q, k, cos, sin), strict=True)
        )


def test_gradients_are_those_of_the_plain_pieces() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, requires_grad=True)
    norm = FusedRMSNorm(nn.Parameter(torch.randn(8)), 1e-3)
    weight, upstream = norm.weight, torch.randn(2, 3, 8)
    plain = weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3)
    expected = torch.autograd.grad(plain, [x, weight], upstream)
    found = torch.autograd.grad(norm(x), [x, weight], upstream)
    assert all(
        torch.allclose(one, other, rtol=1e-5, atol=1e-6)
        for one, other in zip(expected, found, strict=True)
    )

    [(library, quick)] = RotaryPatch.for_model(made("Llama")).replacements.items()
    q, k = (torch.randn(2, heads, 5, 8, requires_grad=True) for heads in (4, 2))
    cos, sin = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    upstreams = [torch.randn_like(q), torch.randn_like(k)]
    expected, found = (
        torch.autograd.grad(rotate(q, k, cos, sin), [q, k], upstreams)
        for rotate in (library, quick)
    )
    assert all(
        torch.allclose(one, other, rtol=1e-5, atol=1e-5)
        for one, other in zip(expected, found, strict=True)
    )


def test_bf16_queries_are_rotated_by_fp32_angles_as_in_the_library() -> None:
    [(library, quick)] = RotaryPatch.for_model(made("Llama")).replacements.items()
    generator = torch.Generator().manual_seed(0)
    q, k = (
        torch.randn(2, heads, 5, 8, generator=generator).bfloat16().requires_grad_()
        for heads in (4, 2)
    )
    cos, sin = (torch.randn(2, 5, 8, generator=generator) for _ in range(2))
    outputs = [rotate(q, k, cos, sin) for rotate in (library, quick)]
    assert {x.dtype for pair in outputs for x in pair} == {torch.float32}
    for expected, rotated in zip(*outputs, strict=True):
        torch.testing.assert_close(rotated, expected, rtol=1e-5, atol=1e-5)
    expected_gradients, gradients = (
        torch.autograd.grad([x.sum() for x in pair], [q, k]) for pair in outputs
    )
    for expected, gradient in zip(expected_gradients, gradients, strict=True):
        assert gradient.dtype == torch.bfloat16
        torch.testing.assert_close(gradient, expected, rtol=2e-2, atol=2e-2)


def test_what_is_trained_learns_what_the_plain_model_learns() -> None:
    ids = torch.randint(5, 60, (2, 9), generator=torch.Generator().manual_seed(1))
    plain, own = made("Llama"), made("Llama")
    assert fuse_layers(own) == 5 and plain.state_dict().keys() == own.state_dict().keys()
    plain(input_ids=ids, labels=ids).loss.backward()
    with RotaryPatch.for_model(own).active():
        own(input_ids=ids, labels=ids).loss.backward()
    for (name, one), other in zip(plain.named_parameters(), own.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-6), name
