"""SyntaxGym formulas, with Python's evaluation as the oracle."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antlm_bench.suites.formula import ATOL, Region, parse_formula

NUMBERS = {"a": (3.0, 5.0, 9.0, 17.0), "b": (4.0, 1.5, 6.0, 11.5)}
BITS = {
    Region(n, name): value
    for name, row in NUMBERS.items()
    for n, value in zip("123*", row, strict=True)
}


def surprisal_gap(text: str) -> float:
    return parse_formula(text).evaluate_gap(BITS.__getitem__)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(1;%b%) > (1;%a%)", 1.0),
        ("(1;%a%) > (1;%b%)", -1.0),
        ("(2;%a%)<(2;%b%)", -3.5),
        ("(*;%a%) > (1;%a%) + (2;%a%) + (3;%a%)", 0.0),
        ("(3;%a%) - (1;%a%) - (2;%a%) > 0", 1.0),  # from the left: 9 - 3 - 5
        ("(3;%a%) - (1;%a%) + (2;%a%) > 10.5", 0.5),  # 9 - 3 + 5
        ("[ (1;%a%) + (2;%a%) ] < [ (1;%b%) + (2;%b%) ]", -2.5),
        ("((1;%b%) > (1;%a%)) & ((2;%a%) > (2;%b%))", 1.0),  # the smaller gap of 1 and 3.5
        ("(1;%b%) > (1;%a%) & (2;%a%) < (2;%b%)", -3.5),
        ("(1;%b%) > (1;%a%) | (2;%a%) < (2;%b%)", 1.0),
        ("[(3;%a%)-(1;%a%)]-[(3;%b%)-(1;%b%)]>0", 4.0),
        ("((1;%a%)) > ((((1;%b%))))", -1.0),
    ],
)
def test_a_formula_holds_by_as_many_bits_as_computed_by_hand(text: str, expected: float) -> None:
    assert surprisal_gap(text) == pytest.approx(expected)


def test_equality_has_the_tolerance_of_syntaxgym() -> None:
    assert surprisal_gap("(1;%a%) = 3") > 0
    assert surprisal_gap(f"(1;%a%) = {3 + ATOL / 2}") > 0
    assert surprisal_gap(f"(1;%a%) = {3 + 2 * ATOL}") < 0


def test_a_formula_lists_its_regions_once_and_in_order() -> None:
    assert parse_formula("(2;%b%) + (1;%a%) > (2;%b%) + (*;%no_gap%)").regions == (
        Region("2", "b"), Region("1", "a"), Region("*", "no_gap"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "got the end of the formula"),
        ("(1;%a%)", "a comparison"),
        ("(1;%a%) > ", "got the end of the formula"),
        ("(1;%a%) > (2;%a%) (3;%a%)", r"unexpected '\(3;%a%\)' after the comparison"),
        ("((1;%a%) > (2;%a%)", r"expected '\)'"),
        ("[(1;%a%) > (2;%a%))", "expected ']'"),
        (
            "(1;%a%) > (2;%a%) > (3;%a%)",
            "joins numbers, got a comparison and a number",
        ),
        ("(1;%a%) & (2;%a%)", "joins comparisons"),
        ("((1;%a%) > (2;%a%)) + 1 > 2", "joins numbers"),
        ("(x;%a%) > 1", "invalid syntax at"),
        ("(1;a) > 1", "invalid syntax at"),
        ("(1;%a%) >= (2;%a%)", "got '='"),
    ],
)
def test_errors_in_a_formula_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_formula(text)


REGION = st.sampled_from(sorted(BITS)).map(
    lambda r: (f"({r.region_id};%{r.condition}%)", f"BITS[{tuple(r)!r}]")
)
NUMBER = st.integers(0, 20).map(lambda n: (str(n), str(n)))


def join_operands(operators: list[str], python: dict[str, str], bracket: bool):
    def join(draw: tuple[tuple[str, str], str, tuple[str, str]]) -> tuple[str, str]:
        (a, x), operator, (b, y) = draw
        ours = f"({a} {operator} {b})" if bracket else f"[{a}{operator}{b}]"
        return ours, f"({x} {python.get(operator, operator)} {y})"

    return lambda part: st.tuples(part, st.sampled_from(operators), part).map(join)


EXPRESSION = st.recursive(REGION | NUMBER, join_operands(["+", "-"], {}, True), max_leaves=5)
COMPARISON = join_operands(["<", ">"], {}, False)(EXPRESSION)
FORMULA = st.recursive(
    COMPARISON, join_operands(["&", "|"], {"&": "and", "|": "or"}, True), max_leaves=4
)


@pytest.mark.long
@given(FORMULA)
def test_any_formula_holds_where_python_says_so(pair: tuple[str, str]) -> None:
    text, python = pair
    gap = surprisal_gap(text)
    if not math.isclose(gap, 0, abs_tol=1e-9):
        assert (gap > 0) == eval(python, {"BITS": {tuple(r): bits for r, bits in BITS.items()}})
