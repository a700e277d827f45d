"""Recipes at nano scale learn: what they were trained for, they are clearly better at than
guessing.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from antlm_bench import score
from antlm_bench.commands.train import TrainOptions, train


@pytest.mark.long
@pytest.mark.parametrize(("recipe", "method"), [("babyllama", "causal"), ("ltg-bert", "mlm")])
def test_a_nano_recipe_learns_the_grammar(recipe: str, method: str, tmp_path: Path) -> None:
    """A sixth of the text in smaller batches is enough; the suite holds no sentence of it."""
    options = TrainOptions(
        scale="nano", changes=["corpus.words=40_000", "batch.tokens=1024"], device="cpu"
    )
    checkpoint = train(recipe, "nano", tmp_path / recipe, options)
    [run] = score(str(checkpoint), "nano", out=tmp_path / "run", device="cpu")
    [cell] = run
    assert cell.method == method and cell.summary.headline.n == 800
    assert cell.summary.headline.low > 0.75
