"""Linear layers in int8 against products in double precision, and the scorer that uses them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lookup_model import LookupModel
from test_cpu_kernels import made

from antlm_bench.checkpoints import build_adaptive_scorer, open_checkpoint, with_int8_layers
from antlm_bench.checkpoints import checkpoint as checkpoint_module
from antlm_bench.scoring import adaptive, int8_linear, multiple_choice
from antlm_bench.scoring.cpu_kernels import fuse_layers, pack_linears
from antlm_bench.scoring.int8_linear import (
    Int8Linear,
    QuantizedInput,
    applies_gelu,
    check_kept_inputs,
    int8_is_faster,
    packs_matrices,
    quantize_rows,
    use_int8_linears,
)
from antlm_bench.scoring.methods import METHODS, resolve_method
from antlm_bench.scoring.mixed_precision_head import Int8LMHead
from antlm_bench.types import Item, Option

needs_int8 = pytest.mark.skipif(
    not int8_is_faster(), reason="int8 products are slow on this CPU, or torch lacks them"
)


def test_codes_are_within_half_a_step_and_use_the_whole_range():
    x = torch.randn(7, 33, generator=torch.Generator().manual_seed(0))
    x[3] = 0
    codes, scales = quantize_rows(x)
    assert codes.dtype == torch.uint8 and scales.shape == (7, 1)
    restored = (codes.double() - 128) * scales.double()
    assert ((restored - x).abs() <= 0.5001 * scales).all()
    largest = (codes.int() - 128).abs().amax(-1)
    assert largest.tolist() == [127, 127, 127, 0, 127, 127, 127]


def test_layers_with_one_input_quantize_it_once(monkeypatch):
    calls = []
    monkeypatch.setattr(int8_linear, "quantize_rows", lambda x: calls.append(x) or quantize_rows(x))
    shared, x = QuantizedInput(), torch.ones(2, 3)
    first, second = shared.quantize(x), shared.quantize(x)
    assert len(calls) == 1 and first[0] is second[0]
    equal = shared.quantize(x.clone())  # another tensor, although it holds the same numbers
    assert len(calls) == 2 and torch.equal(equal[0], first[0])


class TwoLayers(torch.nn.Module):
    """Two layers that read one tensor."""

    def __init__(self, adds_in_place):
        super().__init__()
        self.adds_in_place = adds_in_place
        self.first, self.second = (torch.nn.Linear(32, 32) for _ in range(2))

    def forward(self, x):
        y = self.first(x)
        if self.adds_in_place:
            x += 5 * y.tanh()
        return y + self.second(x)

    def get_output_embeddings(self):
        return None


@needs_int8
@pytest.mark.parametrize("adds_in_place", [False, True])
def test_an_input_that_changes_in_place_is_quantized_anew(adds_in_place):
    torch.manual_seed(0)
    model, x = TwoLayers(adds_in_place).eval(), torch.randn(5, 32)
    with torch.inference_mode():
        expected = model(x.clone())
        pack_linears(model, 5, 5)
        use_int8_linears(model, 5)
        check_kept_inputs(model, lambda: model(x.clone()))
        error = model(x.clone()) - expected
    assert model.first.shared_input.is_kept == (not adds_in_place)
    assert 0 < float(error.square().mean().sqrt() / expected.square().mean().sqrt()) < 0.03


@needs_int8
@pytest.mark.parametrize(("shape", "bias"), [((5, 64), True), ((2, 9, 96), False)])
@pytest.mark.parametrize("activation", [None, ("gelu", "none"), ("gelu", "tanh"), ("swish", "")])
def test_an_int8_layer_is_the_product_up_to_its_rounding(shape, bias, activation):
    torch.manual_seed(0)
    plain = torch.nn.Linear(shape[-1], 48, bias)
    x = torch.randn(shape)
    weight = plain.weight.detach().double()
    y = x.double() @ weight.T + (plain.bias.detach().double() if bias else 0)
    if activation is not None:
        name, variant = activation
        functional = torch.nn.functional
        y = functional.silu(y) if name == "swish" else functional.gelu(y, approximate=variant)
    with torch.inference_mode():
        found = Int8Linear(plain, 64, QuantizedInput(), activation)(x)
    assert found.dtype == torch.float32 and found.shape == y.shape
    error = float((found - y).square().mean().sqrt() / y.square().mean().sqrt())
    assert 0 < error < 0.02


@needs_int8
@pytest.mark.parametrize("name", ["Llama", "Bert"])
def test_all_packed_layers_of_a_model_become_int8(name):
    model = made(name).eval()
    pack_linears(model, 64, 64)
    fuse_layers(model)
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        before = model(input_ids=ids).logits
        assert use_int8_linears(model, 64) > 4
        after = model(input_ids=ids).logits
    assert 0 < float((after - before).abs().max()) < 0.1 * float(before.abs().max())


@needs_int8
@pytest.mark.long
@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_int8_scores_are_close_and_items_say_how_they_were_scored(make_checkpoint, sentences, kind):
    opened = open_checkpoint(str(make_checkpoint(kind)))
    methods = [resolve_method("causal" if kind == "causal" else "mlm", opened)]
    pairs = zip(sentences[:40], sentences[40:80], strict=True)
    items = [Item(str(n), (Option(a), Option(b)), 0) for n, (a, b) in enumerate(pairs)]
    scorer = adaptive.AdaptiveScorer(with_int8_layers(opened), opened, is_int8=True)
    scorer = scorer.calibrate(items, methods)
    assert isinstance(scorer.fast_model.engine.model.get_output_embeddings(), Int8LMHead)

    [found], [exact] = (
        scorer.predict(items, methods),
        multiple_choice.predict(opened, items, methods),
    )

    in_fp32 = found.has_flag("float32")
    assert (found.has_flag("int8") == ~in_fp32).all()
    assert found.pred.tolist() == exact.pred.tolist()
    scores, truth = found.padded("scores"), exact.padded("scores")
    np.testing.assert_allclose(scores[in_fp32], truth[in_fp32], rtol=1e-5)
    np.testing.assert_allclose(scores[~in_fp32], truth[~in_fp32], rtol=0.03)
    gaps = np.abs(scores[:, 0] - scores[:, 1])
    assert (gaps[~in_fp32] > scorer.bounds[0]).all()


@needs_int8
def test_an_outlier_channel_makes_the_error_of_a_layer_larger():
    torch.manual_seed(0)
    plain, x = torch.nn.Linear(64, 48, bias=False), torch.randn(20, 64)
    hostile = x.clone()
    hostile[:, 0] *= 100  # takes the range of the codes
    layer = Int8Linear(plain, 64, QuantizedInput())
    errors = []
    with torch.inference_mode():
        for rows in (x, hostile):
            exact = rows.double() @ plain.weight.double().T
            errors.append(float((layer(rows) - exact).square().mean().sqrt()))
    assert errors[1] > 5 * errors[0]


def test_a_model_with_larger_errors_has_more_items_rescored():
    words = {"the": -1.0, "a": -2.0, "cat": -3.0, "cats": -5.0}
    texts = [(f"{a} {b}", f"{c} {d}") for a in words for b in words for c in words for d in words]
    items = [Item(str(n), tuple(map(Option, pair)), 0) for n, pair in enumerate(texts)]
    methods, exact = [METHODS["causal"]], LookupModel(words)
    [truth] = multiple_choice.predict(exact, items, methods)
    num_rescored = []
    for noise in (0.001, 0.05, 0.2):
        scorer = adaptive.AdaptiveScorer(LookupModel(words, noise=noise), exact, is_int8=True)
        [found] = scorer.calibrate(items, methods).predict(items, methods)
        is_tie = truth.padded("scores")[:, 0] == truth.padded("scores")[:, 1]
        assert (found.pred == truth.pred)[~is_tie].all()
        num_rescored.append(int(found.has_flag("float32").sum()))
    assert num_rescored[0] < num_rescored[1] < num_rescored[2]


@pytest.mark.parametrize(("name", "expected"), [("Llama", False), ("Bert", True)])
def test_a_model_whose_layers_apply_a_gelu_is_recognized(name, expected):
    model = made(name).eval()
    assert not applies_gelu(model)  # its layers are plain
    pack_linears(model, 64, 64)
    fuse_layers(model)
    assert applies_gelu(model) is expected


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("LlamaForCausalLM", True),
        ("GPT2LMHeadModel", False),
        ("FalconForCausalLM", False),
        ("MixtralForCausalLM", False),
    ],
)
def test_models_whose_matrices_would_stay_in_fp32_do_not_get_int8(
    make_checkpoint, monkeypatch, architecture, expected
):
    """GPT-2 has Conv1D, Falcon a subclass of Linear, Mixtral experts: only their heads are packed,
    and a body in fp32 is slower than one in bf16.
    """
    folder = make_checkpoint("causal", architecture=architecture, num_key_value_heads=4)
    opened = open_checkpoint(str(folder))
    assert packs_matrices(opened.engine.model) is expected
    monkeypatch.setattr(checkpoint_module, "int8_is_faster", lambda: True)
    monkeypatch.setattr(checkpoint_module, "with_int8_layers", lambda checkpoint: checkpoint)
    assert build_adaptive_scorer(opened).is_int8 is expected


@pytest.mark.parametrize("is_faster", [False, True])
def test_int8_is_used_only_where_it_was_measured_to_be_faster(
    make_checkpoint, monkeypatch, is_faster
):
    opened = open_checkpoint(str(make_checkpoint("causal")))
    monkeypatch.setattr(checkpoint_module, "int8_is_faster", lambda: is_faster)
    copies = {name: lambda _, name=name: name for name in ("with_int8_layers", "with_bf16_body")}
    for name, make_copy in copies.items():
        monkeypatch.setattr(checkpoint_module, name, make_copy)
    scorer = build_adaptive_scorer(opened)
    assert scorer.is_int8 is is_faster
    assert scorer.fast_model == ("with_int8_layers" if is_faster else "with_bf16_body")
    opened.engine.disable_shortcut("CPU kernels")  # as a failed self-test does
    assert not build_adaptive_scorer(opened).is_int8


@pytest.mark.parametrize("failure", [RuntimeError, None])
def test_a_cpu_without_fast_int8_is_recognized(monkeypatch, failure):
    def measure(rows: int) -> float:
        if failure is not None:
            raise failure("not supported")
        return 0.9

    monkeypatch.setattr(int8_linear, "_measure_speed", measure)
    assert int8_linear.int8_is_faster.__wrapped__() is False


@pytest.mark.parametrize("is_int8", [False, True])
def test_only_items_with_int8_scores_have_the_flag(is_int8):
    exact = {"the": -1.0, "a": -2.0, "cat": -3.0, "cats": -5.0}
    items = [
        Item(str(n), (Option("the cat"), Option(text)), 0)
        for n, text in enumerate(["a cat", "a cats"])  # gaps of 1 and 3 nats
    ]
    scorer = adaptive.AdaptiveScorer(
        LookupModel(exact), LookupModel(exact), bounds=(2.0,), is_int8=is_int8
    )
    [found] = scorer.predict(items, [METHODS["causal"]])
    assert found.flag_lists() == [["float32"], ["int8"] if is_int8 else []]


def test_an_item_that_is_too_long_has_no_int8_score():
    words = {"the": -1.0, "a": -9.0}
    items = [
        Item("short", (Option("the"), Option("a")), 0),
        Item("long", (Option("the " * 9), Option("a")), 0),
    ]
    model = LookupModel(words)
    scorer = adaptive.AdaptiveScorer(model, model, bounds=(0.0,), is_int8=True)
    [found] = scorer.predict(items, [METHODS["causal"]])
    assert found.has_flag("int8").tolist() == [True, False]
