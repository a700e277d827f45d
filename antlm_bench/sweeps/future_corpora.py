"""The words of a corpus on which a stage will train, before its tokenizer exists."""

from __future__ import annotations

from functools import cache

from antlm_bench.training.recipe import Recipe
from antlm_bench.training.text_sources import count_words, load_text_source


def count_corpus_words(corpus: str, recipe: Recipe) -> int:
    """Return the words that a recipe trains on, without those that it holds out.

    Raises DataError if there is no text.
    """
    words = _count_words(corpus)
    words = min(words, recipe.corpus.words or words)
    return round(words * (1 - recipe.corpus.held_out))


@cache
def _count_words(corpus: str) -> int:
    source = load_text_source(corpus)
    return sum(count_words(text) for file in source.files for _, text in file.iter_lines())
