"""SQuAD's exact match and F1 under the name by which lm-eval's tasks import them, where transformers no longer has it.

lm_eval 0.4.13's ReCoRD (super_glue/record/util.py) and a few others import `transformers.data.metrics.squad_metrics`,
which transformers 5 removed. `lend` answers that import, and only where nothing else does.
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

PACKAGE = "transformers.data.metrics"
MODULE = f"{PACKAGE}.squad_metrics"


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation, articles and superfluous white space (Rajpurkar et al. 2016, evaluate-v2.0)."""
    bare = "".join(sign for sign in text.lower() if sign not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def compute_exact(gold: str, said: str) -> int:
    """1 if the two are one text once they are normalised, else 0."""
    return int(normalize_answer(gold) == normalize_answer(said))


def compute_f1(gold: str, said: str) -> float:
    """F1 of the words that two texts share, counted as often as both have them; of no words at all, are both empty?"""
    wanted, found = normalize_answer(gold).split(), normalize_answer(said).split()
    if not wanted or not found:
        return float(wanted == found)
    shared = sum((Counter(wanted) & Counter(found)).values())
    return 2 * shared / (len(wanted) + len(found))


class _Lent(MetaPathFinder, Loader):
    """The last finder that is asked: it knows two names."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        return ModuleSpec(name, self, is_package=name == PACKAGE) if name in (PACKAGE, MODULE) else None

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ == MODULE:
            for function in (normalize_answer, compute_exact, compute_f1):
                setattr(module, function.__name__, function)


def lend() -> None:
    """Make the import work in this process; called twice it does nothing more."""
    if not any(isinstance(finder, _Lent) for finder in sys.meta_path):
        sys.meta_path.append(_Lent())
