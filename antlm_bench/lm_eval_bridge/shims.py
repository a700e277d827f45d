"""Shims for symbols that lm-eval's tasks import and newer libraries removed.

In lm_eval 0.4.13, ReCoRD (super_glue/record/util.py), scrolls and a few other tasks import exact
match and F1 of SQuAD from `transformers.data.metrics.squad_metrics`, which transformers 5 removed.
BasqueGLUE imports `load_metric` from datasets, which datasets 3 replaced by `evaluate.load`.
Symbols that still exist are not replaced.
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
    """Return a text in lower case, without punctuation, articles and repeated white space.

    The rule is that of SQuAD (Rajpurkar et al. 2016, evaluate-v2.0).
    """
    letters = "".join(char for char in text.lower() if char not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", letters).split())


def compute_exact(gold: str, predicted: str) -> int:
    """Return 1 if the normalised texts are equal, else 0."""
    return int(normalize_answer(gold) == normalize_answer(predicted))


def compute_f1(gold: str, predicted: str) -> float:
    """Return the F1 of two bags of normalised words. If one is empty: 1 if both are, else 0."""
    gold_words, words = normalize_answer(gold).split(), normalize_answer(predicted).split()
    if not gold_words or not words:
        return float(gold_words == words)
    num_common = sum((Counter(gold_words) & Counter(words)).values())
    return 2 * num_common / (len(gold_words) + len(words))


class _ShimFinder(MetaPathFinder, Loader):
    """Import hook for the two modules that transformers removed; asked after all other finders."""

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
    """Replace `datasets.load_metric` of datasets 2."""
    import evaluate

    return evaluate.load(*names, **settings)


def install_shims() -> None:
    """Install the shims in this process. A second call does nothing."""
    import datasets

    if not any(isinstance(finder, _ShimFinder) for finder in sys.meta_path):
        sys.meta_path.append(_ShimFinder())
    if not hasattr(datasets, "load_metric"):
        datasets.load_metric = load_metric
