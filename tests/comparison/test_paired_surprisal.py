"""Surprisal of words in two runs: paired by hand, tested by a library, and less is better wherever
it is said.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as Xml

import numpy as np
import pytest
from pair_runs import SETTINGS, write_run
from prediction_rows import PredictionRow, from_rows
from scipy import stats

from antlm_bench.cli.app import run
from antlm_bench.comparison import Comparison, Difference, compare_runs
from antlm_bench.comparison.verdict import Margins, judge
from antlm_bench.errors import NotComparable
from antlm_bench.metrics import summarize
from antlm_bench.types import Cell, Floats, Run

WORDS, CONTEXTS = 40, 3


def surprisals(seed: int = 0) -> Floats:
    """Of every word (w, contexts), in nats."""
    rng = np.random.default_rng(seed)
    return rng.gamma(4, 2, (WORDS, 1)) + rng.exponential(1, (WORDS, CONTEXTS))


def said(folder: Path, nats: Floats, long: Sequence[int] = ()) -> Run:
    """A run of these surprisals; of the words in `long`, the first context did not fit."""
    made = []
    for w, each in enumerate(nats):
        for c, value in enumerate(each.tolist()):
            cut = c == 0 and w in long
            labels, flags = {"word": f"w{w}"}, ("too-long",) if cut else ()
            made.append(
                PredictionRow(
                    f"w{w}.{c}", 0, 0, (0.0 if cut else -value,), (1,), (4,), labels, flags
                )
            )
    summary = summarize(
        from_rows(made), suite="words", method="causal", metric="surprisal", macro=(), groups=()
    )
    return write_run(
        folder, (Cell("words", "causal", "k", SETTINGS, summary), made), name=folder.name
    )


def test_words_are_paired_and_are_the_sample(tmp_path: Path) -> None:
    before = surprisals()
    after = before + np.random.default_rng(1).normal(0.3, 0.5, before.shape)
    (found,) = compare_runs(said(tmp_path / "a", before), said(tmp_path / "b", after))
    head, a, b = found.headline, before.mean(axis=1), after.mean(axis=1)
    theirs = stats.ttest_rel(b, a)
    assert (head.a, head.b, head.value, head.n) == pytest.approx(
        (a.mean(), b.mean(), (b - a).mean(), before.size)
    )
    assert (head.low, head.high) == pytest.approx(tuple(theirs.confidence_interval()))
    assert head.p == head.adjusted == pytest.approx(theirs.pvalue, abs=0.003)
    assert (head.gained, head.lost) == ((b < a).sum(), (b > a).sum())
    assert head.detectable == pytest.approx(2.801585 * stats.sem(b - a), rel=0.1)
    assert (found.metric, found.groups, found.flipped) == ("surprisal", (), ())


def test_contexts_that_do_not_fit_one_model_are_left_out_for_both(tmp_path: Path) -> None:
    before, after = surprisals(), surprisals(1)
    (found,) = compare_runs(
        said(tmp_path / "a", before, long=[1]), said(tmp_path / "b", after, long=[1, 2])
    )
    change = (after - before).mean(axis=1)
    for w in (1, 2):
        change[w] = (after - before)[w, 1:].mean()
    assert found.headline.value == pytest.approx(change.mean())
    assert found.headline.n == before.size - 2


def test_a_run_equals_itself_and_one_word_is_no_sample(tmp_path: Path) -> None:
    a = said(tmp_path / "a", surprisals())
    (found,) = compare_runs(a, a)
    head = found.headline
    assert (head.value, head.low, head.high, head.p, head.detectable) == (0, 0, 0, 1, None)
    one = said(tmp_path / "one", surprisals()[:1])
    with pytest.raises(NotComparable, match="two words"):
        compare_runs(one, one, suites=["words"])


@pytest.mark.long
@pytest.mark.parametrize("rise", [0.3, -0.3])
def test_a_rise_is_a_regression_and_a_fall_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rise: float
) -> None:
    before = surprisals()
    after = before + rise + np.random.default_rng(1).normal(0, 0.1, before.shape)
    said(tmp_path / "a", before), said(tmp_path / "b", after)
    worse = rise > 0
    files = ["--junit", str(tmp_path / "j.xml"), "--markdown", str(tmp_path / "m.md")]
    asked = ["check", str(tmp_path / "b"), "--against", str(tmp_path / "a")]
    assert run([*asked, *files]) == int(worse)
    shown = capsys.readouterr()
    change = f"{rise:+.2f}"[:4]
    assert (
        "words · causal · nats, lower is better: regression: " in " ".join(shown.err.split())
    ) == worse
    assert (
        change in shown.out
        and ("regression" if worse else "pass") in shown.out.split("pass: the 95%")[0]
    )
    case = Xml.parse(tmp_path / "j.xml").find(".//testcase")
    assert case is not None and (case.find("failure") is not None) == worse
    assert (
        change in (tmp_path / "m.md").read_text()
        and "nats, lower is better" in (tmp_path / "m.md").read_text()
    )
    assert run([*asked, "--margin", "50"]) == 0  # half a nat
    capsys.readouterr()
    assert run([*asked, "--json"]) == int(worse)
    (suite,) = json.loads(capsys.readouterr().out)["suites"]
    assert suite["lower_is_better"] and np.sign(suite["headline"]["difference"]) == np.sign(rise)
    assert suite["headline"]["margin"] == 0.01


@pytest.mark.parametrize("rise", [0.3, -0.3])
def test_a_comparison_marks_what_is_worse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rise: float
) -> None:
    said(tmp_path / "a", surprisals())
    said(
        tmp_path / "b",
        surprisals() + rise + np.random.default_rng(1).normal(0, 0.1, (WORDS, CONTEXTS)),
    )
    mark = "▼" if rise > 0 else "▲"
    for form in ([], ["--markdown"]):
        assert run(["compare", str(tmp_path / "a"), str(tmp_path / "b"), *form]) == 0
        shown = capsys.readouterr().out.partition("Values are in percent")[0]
        shown = " ".join(shown.split())
        assert mark in shown and "nats, lower is better" in shown and "words better" in shown
        assert f"{rise:+.2f}"[:4] in shown and " nats is detected with a power of 80%" in shown


@pytest.mark.parametrize("lower", [True, False])
def test_whichever_way_is_better_the_gate_is_its_own_mirror_image(lower: bool) -> None:
    sign = -1 if lower else 1
    for value, half, status in (
        (-0.05, 0.01, "regression"),
        (0.0, 0.005, "pass"),
        (-0.02, 0.05, "undecided"),
    ):
        low, high = sorted((sign * (value - half), sign * (value + half)))
        head = Difference(
            "headline",
            "x",
            "",
            9,
            1.0,
            1 + sign * value,
            sign * value,
            low,
            high,
            lower_is_better=lower,
        )
        assert head.gain == value and head.gain_interval == pytest.approx(
            (value - half, value + half)
        )
        made = Comparison("x", "causal", "causal", "surprisal", (1, 1), head, (), (), ())
        assert judge(made, Margins(default=0.01)).status == status
