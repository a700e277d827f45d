"""A small training text and corpora of it, for tests of the training loop."""

from __future__ import annotations

import random
from pathlib import Path

from tiny_models import WORDS

from antlm_bench.training.corpus import Corpus, prepare_corpus
from antlm_bench.training.recipe import Recipe
from antlm_bench.training.text_sources import load_text_source


def draw_sentences(many: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 9))) + "." for _ in range(many)]


def write_text(folder: Path, many: int = 120) -> Path:
    """Write a folder of two files of sentences."""
    folder.mkdir(parents=True)
    for number in range(2):
        text = "\n".join(draw_sentences(many // 2, number)) + "\n"
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    return folder


def build_corpus(recipe: Recipe, text: Path, folder: Path) -> Corpus:
    return prepare_corpus(
        load_text_source(str(text)), recipe.corpus, recipe.tokenizer, recipe.model.positions, folder
    )
