"""Parse SyntaxGym's predictions, "(4;%a%) > (4;%b%)".

(4;%a%) is the surprisal in bits of region 4 under the condition a, and (*;%a%) is the surprisal of
the whole sentence. Numbers, sums and differences are compared with < > or =, comparisons are joined
with & or |, and ( ) or [ ] group. + and - have the same precedence and associate to the left.
SyntaxGym's parser differs for three terms without brackets: it reads a - b + c as a - (b + c), and
ignores c in a + b + c (syntaxgym-core, prediction.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

WHOLE_SENTENCE = "*"
# Tolerances of `=`, relative and in bits: SyntaxGym's EQUALITY_RTOL and EQUALITY_ATOL.
RTOL, ATOL = 1e-5, 1e-3
TOKEN_PATTERN = re.compile(
    r"\s*(?:\(\s*(?P<region>\d+|\*)\s*;\s*%(?P<condition>[^%]+)%\s*\)"
    r"|(?P<literal>\d+(?:\.\d*)?|\.\d+)"
    r"|(?P<symbol>[-+<>=&|()\[\]]))"
)
BRACKETS = {"(": ")", "[": "]"}


class Region(NamedTuple):
    """A region of the sentence of a condition."""

    region_id: str
    """The region's number in digits, or WHOLE_SENTENCE for all regions."""
    condition: str


Evaluator = Callable[[Callable[[Region], float]], float]
"""Takes a function that returns the surprisal of a region; returns the value of an expression. All
values are in bits."""


@dataclass(frozen=True, slots=True)
class Formula:
    """A prediction about the surprisal of regions."""

    text: str
    regions: tuple[Region, ...]
    """The regions in the formula, in order of appearance."""
    evaluate_gap: Evaluator
    """Computes the gap in bits: positive if the prediction holds, negative if it does not.
    a > b: a - b. a = b: tolerance - |a - b|. x & y: the smaller of their gaps. x | y: the larger.
    """


def parse_formula(text: str) -> Formula:
    """Parse a formula. Raises ValueError with the formula and what is wrong in it."""
    parser = _Parser(text)
    is_comparison, evaluate = parser.parse_expression()
    if parser.position < len(parser.tokens):
        raise parser.make_error(f"unexpected {parser.peek()!r} after the comparison")
    if not is_comparison:
        raise parser.make_error("a comparison (< > =) is missing: this is a number")
    return Formula(text.strip(), tuple(dict.fromkeys(parser.regions)), evaluate)


class _Expression(NamedTuple):
    """A number, or a comparison of numbers."""

    is_comparison: bool
    evaluate: Evaluator
    """Computes the value of a number, or the gap of a comparison."""


BinaryOperator = Callable[[float, float], float]


class _Operator(NamedTuple):
    precedence: int
    apply: BinaryOperator
    takes_comparisons: bool = False
    gives_comparison: bool = False


OPERATORS = {
    "&": _Operator(1, min, takes_comparisons=True, gives_comparison=True),
    "|": _Operator(1, max, takes_comparisons=True, gives_comparison=True),
    "<": _Operator(2, lambda a, b: b - a, gives_comparison=True),
    ">": _Operator(2, lambda a, b: a - b, gives_comparison=True),
    "=": _Operator(2, lambda a, b: ATOL + RTOL * abs(b) - abs(a - b), gives_comparison=True),
    "+": _Operator(3, lambda a, b: a + b),
    "-": _Operator(3, lambda a, b: a - b),
}


class _Parser:
    """A precedence climbing parser."""

    def __init__(self, text: str) -> None:
        self.text, self.position = text, 0
        self.regions: list[Region] = []
        self.tokens: list[re.Match[str]] = []
        end, stripped = 0, text.rstrip()
        while end < len(stripped):
            token = TOKEN_PATTERN.match(stripped, end)
            if not token:
                raise self.make_error(f"invalid syntax at {stripped[end:].lstrip()[:20]!r}")
            self.tokens.append(token)
            end = token.end()

    def make_error(self, message: str) -> ValueError:
        return ValueError(f"{self.text!r}: {message}")

    def peek(self) -> str:
        """Return the next token; "" at the end."""
        at_end = self.position >= len(self.tokens)
        return "" if at_end else self.tokens[self.position][0].strip()

    def make_expected_error(self, expected: str) -> ValueError:
        token = self.peek()
        actual = repr(token) if token else "the end of the formula"
        return self.make_error(f"expected {expected}, got {actual}")

    def parse_expression(self, min_precedence: int = 1) -> _Expression:
        left = self.parse_atom()
        while True:
            symbol = self.peek()
            operator = OPERATORS.get(symbol)
            if operator is None or operator.precedence < min_precedence:
                return left
            self.position += 1
            right = self.parse_expression(operator.precedence + 1)
            if {left.is_comparison, right.is_comparison} != {operator.takes_comparisons}:
                expected = "comparisons" if operator.takes_comparisons else "numbers"
                actual = " and ".join(
                    "a comparison" if operand.is_comparison else "a number"
                    for operand in (left, right)
                )
                raise self.make_error(f"{symbol!r} joins {expected}, got {actual}")
            evaluate = _apply_operator(operator.apply, left.evaluate, right.evaluate)
            left = _Expression(operator.gives_comparison, evaluate)

    def parse_atom(self) -> _Expression:
        at_end = self.position >= len(self.tokens)
        token = None if at_end else self.tokens[self.position]
        if not token or (token["symbol"] and token["symbol"] not in BRACKETS):
            raise self.make_expected_error("a region like (1;%condition%) or a number")
        self.position += 1
        if token["region"]:
            region = Region(token["region"], token["condition"].strip())
            self.regions.append(region)
            return _Expression(is_comparison=False, evaluate=lambda surprisal: surprisal(region))
        if token["literal"]:
            value = float(token["literal"])
            return _Expression(is_comparison=False, evaluate=lambda _: value)
        expression = self.parse_expression()
        closing_bracket = BRACKETS[token["symbol"]]
        if self.peek() != closing_bracket:
            raise self.make_expected_error(repr(closing_bracket))
        self.position += 1
        return expression


def _apply_operator(operator: BinaryOperator, left: Evaluator, right: Evaluator) -> Evaluator:
    return lambda surprisal: operator(left(surprisal), right(surprisal))
