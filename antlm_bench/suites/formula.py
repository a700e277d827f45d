"""Parse SyntaxGym's predictions, "(4;%a%) > (4;%b%)".

(4;%a%) is the surprisal in bits of region 4 under the condition a, (*;%a%) that of its whole
sentence. Numbers, sums and differences are compared with < > or =, comparisons are joined with & or
|, and ( ) or [ ] group. + and - have the same precedence and associate to the left. SyntaxGym's own
parser reads a - b + c as a - (b + c) and drops c of a + b + c (syntaxgym-core, prediction.py), so
that a sum of three without brackets means something else there.
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
    r"|(?P<number>\d+(?:\.\d*)?|\.\d+)"
    r"|(?P<sign>[-+<>=&|()\[\]]))"
)
BRACKETS = {"(": ")", "[": "]"}


class Region(NamedTuple):
    """A region of a condition's sentence; number WHOLE_SENTENCE = all regions."""

    number: str
    condition: str


# (region -> its surprisal in bits) -> a number of bits
Evaluator = Callable[[Callable[[Region], float]], float]


@dataclass(frozen=True, slots=True)
class Formula:
    """A prediction about the surprisal of regions."""

    text: str
    regions: tuple[Region, ...]
    """The regions that it mentions, in order of appearance."""
    surprisal_gap: Evaluator
    """By how many bits it holds; negative where it does not. a > b holds by a - b, a = b by what is
    left of the tolerance, & by the smaller and | by the larger of its two sides.
    """


def parse_formula(text: str) -> Formula:
    """Parse a formula. Raises ValueError, which says what is wrong and where."""
    parser = _Parser(text)
    is_comparison, evaluate = parser.parse_expression()
    if parser.position < len(parser.tokens):
        raise parser.make_error(f"nothing more is expected, here is {parser.peek()!r}")
    if not is_comparison:
        raise parser.make_error("a comparison (< > =) is missing: this is a number")
    return Formula(text.strip(), tuple(dict.fromkeys(parser.regions)), evaluate)


class _Expression(NamedTuple):
    """A part of a formula."""

    is_comparison: bool
    evaluate: Evaluator
    """A number of bits, or by how many bits a comparison holds."""


BinaryOperator = Callable[[float, float], float]
# sign -> (precedence, whether its sides are comparisons, whether its result is one, result)
OPERATORS: dict[str, tuple[int, bool, bool, BinaryOperator]] = {
    "&": (1, True, True, min),
    "|": (1, True, True, max),
    "<": (2, False, True, lambda a, b: b - a),
    ">": (2, False, True, lambda a, b: a - b),
    "=": (2, False, True, lambda a, b: ATOL + RTOL * abs(b) - abs(a - b)),
    "+": (3, False, False, lambda a, b: a + b),
    "-": (3, False, False, lambda a, b: a - b),
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
                raise self.make_error(f"cannot be read from {stripped[end:].lstrip()[:20]!r} on")
            self.tokens.append(token)
            end = token.end()

    def make_error(self, message: str) -> ValueError:
        return ValueError(f"{self.text!r}: {message}")

    def peek(self) -> str:
        at_end = self.position >= len(self.tokens)
        return "its end" if at_end else self.tokens[self.position][0].strip()

    def parse_expression(self, min_precedence: int = 1) -> _Expression:
        left = self.parse_atom()
        while (sign := self.peek()) in OPERATORS and OPERATORS[sign][0] >= min_precedence:
            precedence, joins_comparisons, is_comparison, operator = OPERATORS[sign]
            self.position += 1
            right = self.parse_expression(precedence + 1)
            if not left.is_comparison == right.is_comparison == joins_comparisons:
                expected = "comparisons" if joins_comparisons else "numbers"
                actual = " and ".join(
                    "a comparison" if side.is_comparison else "a number" for side in (left, right)
                )
                raise self.make_error(f"{sign!r} stands between {expected}, not between {actual}")
            evaluate = _apply_operator(operator, left.evaluate, right.evaluate)
            left = _Expression(is_comparison, evaluate)
        return left

    def parse_atom(self) -> _Expression:
        token = self.tokens[self.position] if self.position < len(self.tokens) else None
        if token is None or not (token["region"] or token["number"] or token["sign"] in BRACKETS):
            raise self.make_error(
                f"a region like (1;%condition%) or a number is expected, here is {self.peek()!r}"
            )
        self.position += 1
        if token["region"]:
            region = Region(token["region"], token["condition"].strip())
            self.regions.append(region)
            return _Expression(False, lambda surprisal: surprisal(region))
        if token["number"]:
            value = float(token["number"])
            return _Expression(False, lambda _: value)
        inside, closing = self.parse_expression(), BRACKETS[token["sign"]]
        if self.peek() != closing:
            raise self.make_error(f"{closing!r} is expected, here is {self.peek()!r}")
        self.position += 1
        return inside


def _apply_operator(operator: BinaryOperator, left: Evaluator, right: Evaluator) -> Evaluator:
    return lambda surprisal: operator(left(surprisal), right(surprisal))
