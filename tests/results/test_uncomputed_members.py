"""`score --suite COLLECTION`: which members the table does not hold, and what makes them."""

from __future__ import annotations

from antlm_bench.results.collections import describe_unscored_members


def test_members_that_are_not_scored_are_named_with_their_commands() -> None:
    (line,) = describe_unscored_members(["out/my model"], ["blimp", "babylm-2024"])
    assert line == (
        "babylm-2024: not scored, and not in the table: "
        "GLUE (antlm-bench finetune --model 'out/my model' --suite glue-2024)"
    )
    (later,) = describe_unscored_members(["a", "b"], ["babylm-2025"])
    assert "GLUE (antlm-bench finetune --model CKPT --suite glue-2025)" in later


def test_of_what_is_scored_as_a_whole_nothing_is_said() -> None:
    assert not list(describe_unscored_members(["x"], ["blimp", "nowhere.csv", "lm-eval:blimp"]))
