"""An option that sets one thing to two different values is refused: none wins in silence."""

from __future__ import annotations

import pytest

from antlm_bench.cli.app import run
from antlm_bench.cli.shared_options import parse_column_map, parse_row_limits

FINETUNE = "finetune --model m --suite t.csv"


@pytest.mark.parametrize(
    ("argv", "option", "words"),
    [
        (f"{FINETUNE} --set epochs=1 --set epochs=2", "--set", "'epochs' has two values: '1', '2'"),
        (f"{FINETUNE} --columns text=a,text=b", "--columns", "'text' has two values: 'a', 'b'"),
        (f"{FINETUNE} --limit-train 5 --limit-train 6", "--limit-train", "two limits: 5, 6"),
        (f"{FINETUNE} --limit-valid rte=5,rte=6", "--limit-valid", "rte has two limits: 5, 6"),
        (f"{FINETUNE} --seeds 3 --seed 1", "--seed", "--seed 1 and --seeds 3 are both given"),
        ("train babyllama --corpus nano --out o --set seed=1 --set seed=2", "--set", "'seed' has"),
        ("show babyllama --set seed=1 --set seed=2", "--set", "'seed' has two values"),
        ("report r --member a=b --member a=c", "--member", "'a' has two values: 'b', 'c'"),
    ],
)
def test_two_values_are_refused(
    argv: str, option: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(argv.split()) == 2
    error = capsys.readouterr().err
    assert f"error: {option}: " in error and words in error


def test_the_same_value_twice_is_one_value() -> None:
    assert parse_column_map(["text=a", "text=a"]) == {"text": "a"}
    assert parse_row_limits(["5", "5", "rte=6"], "--limit-train") == {"": 5, "rte": 6}
