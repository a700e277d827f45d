"""Shims for symbols that lm-eval's tasks import and newer libraries removed.

lm_eval 0.4.13's ReCoRD (super_glue/record/util.py), scrolls and a few others import SQuAD's exact
match and F1 from `transformers.data.metrics.squad_metrics`, which transformers 5 removed; its
BasqueGLUE imports `load_metric` from datasets, which datasets 3 removed in favour of
`evaluate.load`. Nothing that is still there is replaced.
"""

from __future__ import annotations

import re
import string
import sys
from collections import Counter
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

SQUAD_PACKAGE = "transformers.data.metrics"
SQUAD_MODULE = f"{SQUAD_PACKAGE}.squad_metrics"


def normalize_answer(text: str) -> str:
    """Return a text in lower case, without punctuation, articles and superfluous white space
    (Rajpurkar et al. 2016, evaluate-v2.0).
    """
    letters = "".join(char for char in text.lower() if char not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", letters).split())


def compute_exact(gold: str, predicted: str) -> int:
    """Return 1 if two texts are equal once they are normalised, else 0."""
    return int(normalize_answer(gold) == normalize_answer(predicted))


def compute_f1(gold: str, predicted: str) -> float:
    """Return the F1 of two bags of words; where one is empty, whether both are."""
    gold_words, words = normalize_answer(gold).split(), normalize_answer(predicted).split()
    if not gold_words or not words:
        return float(gold_words == words)
    shared = sum((Counter(gold_words) & Counter(words)).values())
    return 2 * shared / (len(gold_words) + len(words))


class _ShimFinder(MetaPathFinder, Loader):
    """Finds the two modules that transformers removed, after all other finders."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        if name not in (SQUAD_PACKAGE, SQUAD_MODULE):
            return None
        return ModuleSpec(name, self, is_package=name == SQUAD_PACKAGE)

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ == SQUAD_MODULE:
            for function in (normalize_answer, compute_exact, compute_f1):
                setattr(module, function.__name__, function)


def load_metric(*names: Any, **settings: Any) -> Any:
    """Load a metric by its name as datasets 2 did, through its successor `evaluate.load`."""
    import evaluate

    return evaluate.load(*names, **settings)


def install_shims() -> None:
    """Make the imports work in this process. A second call does nothing."""
    import datasets

    if not any(isinstance(finder, _ShimFinder) for finder in sys.meta_path):
        sys.meta_path.append(_ShimFinder())
    if not hasattr(datasets, "load_metric"):
        datasets.load_metric = load_metric
