"""Names that are lent: SQuAD's measures by hand and by lm-eval's own normalisation; where they
stand.
"""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.tasks.super_glue.record.t5_utils import normalize_squad

from antlm_bench.lm_eval_bridge import shims


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
    assert shims.compute_exact(gold, said) == exact
    assert shims.compute_f1(gold, said) == pytest.approx(f1)


@given(st.text(st.sampled_from("aAn theT.-,'é \n")))
def test_normalisation_is_that_of_lm_eval_s_copy(text):
    assert shims.normalize_answer(text) == normalize_squad(text)


def test_the_import_is_answered_only_where_nothing_else_does():
    shims.install_shims()
    shims.install_shims()
    import transformers.data.metrics.squad_metrics as found

    assert found.compute_f1("a cat", "cat") == 1.0
    assert sum(type(finder).__name__ == "_ShimFinder" for finder in sys.meta_path) == 1
    with pytest.raises(ImportError):
        import transformers.data.metrics.absent  # noqa: F401


def test_a_metric_s_name_is_lent_only_where_there_is_none(monkeypatch):
    import datasets
    import evaluate

    shims.install_shims()
    monkeypatch.setattr(evaluate, "load", lambda name, **how: (name, how))
    assert datasets.load_metric("f1", config_name="x") == ("f1", {"config_name": "x"})
    monkeypatch.setattr(datasets, "load_metric", "its own")
    shims.install_shims()
    assert datasets.load_metric == "its own"
