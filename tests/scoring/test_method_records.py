"""Scoring methods are records that say what the rest of the package asks."""

from __future__ import annotations

from antlm_bench.scoring.methods import METHODS, SHIPPED, peer_methods


def test_registered_names_are_those_of_the_records():
    assert tuple(SHIPPED) == METHODS.names()[: len(SHIPPED)]
    assert [METHODS[name].name for name in SHIPPED] == list(SHIPPED)


def test_what_the_records_say_of_the_methods():
    assert {m.name: m.main_attention for m in METHODS} == {
        "causal": "causal",
        "mlm": "full",
        "mlm-l2r": "full",
        "mntp": "full",
        "fused": "full",
        "seq2seq": "cross",
        "infill": "denoising",
    }
    assert [m.name for m in METHODS if m.is_left_to_right] == ["causal"]
    assert [m.name for m in METHODS if m.needs_words] == ["mlm-l2r"]
    assert peer_methods("lm-eval") == ["causal", "seq2seq"]
    assert peer_methods("minicons") == ["causal", "mlm", "mlm-l2r"]
