"""`score --suite COLLECTION`: which members the table does not hold, and what makes them."""

from __future__ import annotations

from antlm_bench.results.collections import left_out


def test_members_that_are_not_scored_are_named_with_their_commands() -> None:
    (line,) = left_out("out/my model", ["blimp", "babylm-2024"])
    assert line == (
        "babylm-2024: not scored, and no part of the table: "
        "GLUE (antlm-bench finetune --model 'out/my model' --suite glue-2024)"
    )
    (later,) = left_out(["a", "b"], "babylm-2025")
    assert "GLUE (antlm-bench finetune --model CKPT --suite glue-2025)" in later


def test_of_what_is_scored_as_a_whole_nothing_is_said() -> None:
    assert not list(left_out("x", ["blimp", "nowhere.csv", "lm-eval:blimp"]))
