"""SQuAD's measures: the official script's own cases by hand, and lm-eval's twin of their normalisation as oracle."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.tasks.super_glue.record.t5_utils import normalize_squad

from antlm_bench.suites import squad


@pytest.mark.parametrize(
    ("gold", "said", "exact", "f1"),
    [
        ("The Old Cat!", "old  cat", 1, 1.0),
        ("Old Cat", "cat", 0, 2 / 3),
        ("cat cat dog", "cat cat", 0, 0.8),
        ("the", "an", 1, 1.0),
        ("the", "cat", 0, 0.0),
        ("U.S.A.", "usa", 1, 1.0),
        ("dog", "cat", 0, 0.0),
    ],
)
def test_cases_by_hand(gold, said, exact, f1):
    assert squad.compute_exact(gold, said) == exact
    assert squad.compute_f1(gold, said) == pytest.approx(f1)


@given(st.text(st.sampled_from("aAn theT.-,'é \n")))
def test_normalisation_is_that_of_lm_eval_s_copy(text):
    assert squad.normalize_answer(text) == normalize_squad(text)


def test_the_import_is_answered_only_where_nothing_else_does():
    squad.lend()
    squad.lend()
    import transformers.data.metrics.squad_metrics as found

    assert found.compute_f1("a cat", "cat") == 1.0
    assert sum(type(finder).__name__ == "_Lent" for finder in sys.meta_path) == 1
    with pytest.raises(ImportError):
        import transformers.data.metrics.absent  # noqa: F401
