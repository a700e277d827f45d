"""Architectures are records whose targets exist."""

from __future__ import annotations

from antlm_bench.architectures.records import ARCHITECTURES, SHIPPED, find_architecture


def test_registered_names_are_those_of_the_records():
    assert [ARCHITECTURES[name].name for name in SHIPPED] == list(SHIPPED)
    assert find_architecture("gpt2") is ARCHITECTURES["gpt2"]
    assert find_architecture("no_such_type") is None


def test_targets_of_a_record_can_be_imported():
    for name in SHIPPED:
        architecture = ARCHITECTURES[name]
        config = architecture.load_class("AutoConfig")
        assert config.model_type == architecture.model_type
        for auto in architecture.classes:
            assert issubclass(
                getattr(architecture.load_class(auto), "config_class", config), config
            )
