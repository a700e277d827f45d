"""SyntaxGym's predictions, "(4;%a%) > (4;%b%)", parsed: what they ask for, and by how much they
hold.

(4;%a%) is the surprisal in bits of region 4 under the condition a, (*;%a%) that of its whole
sentence. Numbers, sums and differences are compared with < > or =, comparisons joined with & or |,
and ( ) or [ ] group. As in arithmetic everywhere, + and - bind alike and from the left; SyntaxGym's
own parser reads a - b + c as a - (b + c), and of a + b + c drops c (syntaxgym-core, prediction.py),
so a sum of three without brackets means something else there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

WHOLE_SENTENCE = "*"
RTOL, ATOL = (
    1e-5,
    1e-3,
)  # what `=` lets pass, relative and in bits (SyntaxGym's EQUALITY_RTOL and EQUALITY_ATOL)
TOKEN_PATTERN = re.compile(
    r"\s*(?:\(\s*(?P<region>\d+|\*)\s*;\s*%(?P<condition>[^%]+)%\s*\)|(?P<number>\d+(?:\.\d*)?|\.\d+)"
    r"|(?P<sign>[-+<>=&|()\[\]]))"
)
BRACKETS = {"(": ")", "[": "]"}


class Region(NamedTuple):
    """A region of a condition's sentence; WHOLE = all of them."""

    number: str
    condition: str


Evaluator = Callable[
    [Callable[[Region], float]], float
]  # surprisals of regions in bits -> a number of bits


@dataclass(frozen=True, slots=True)
class Formula:
    """A prediction. regions: what it mentions, in order of appearance. margin: by how many bits it
    holds, negative where it does not: a > b by a - b, a = b by what is left of its tolerance, & by
    the smaller and | by the larger of its two.
    """

    text: str
    regions: tuple[Region, ...]
    surprisal_gap: Evaluator


def parse_formula(text: str) -> Formula:
    """A formula; ValueError says what is wrong with it, and where."""
    parser = _Parser(text)
    claim, margin = parser.parse_expression()
    if parser.position < len(parser.tokens):
        raise parser.make_error(f"nothing more is expected, here is {parser.peek()!r}")
    if not claim:
        raise parser.make_error("a comparison (< > =) is missing: this is a number")
    return Formula(text.strip(), tuple(dict.fromkeys(parser.regions)), margin)


class _Expression(NamedTuple):
    """A part of a formula: a number of bits, or a claim with its margin in bits."""

    is_comparison: bool
    evaluate: Evaluator


BinaryOperator = Callable[[float, float], float]
# sign -> (how tightly it binds, whether it joins claims, whether it makes one, what it makes)
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
    """Precedence climbing: what binds more tightly is read first, what binds alike from the left.
    """

    def __init__(self, text: str) -> None:
        self.text, self.position = text, 0
        self.regions: list[Region] = []
        self.tokens: list[re.Match[str]] = []
        end, whole = 0, text.rstrip()
        while end < len(whole):
            found = TOKEN_PATTERN.match(whole, end)
            if not found:
                raise self.make_error(f"cannot be read from {whole[end:].lstrip()[:20]!r} on")
            self.tokens.append(found)
            end = found.end()

    def make_error(self, message: str) -> ValueError:
        return ValueError(f"{self.text!r}: {message}")

    def peek(self) -> str:
        return (
            self.tokens[self.position][0].strip() if self.position < len(self.tokens) else "its end"
        )

    def parse_expression(self, min_precedence: int = 1) -> _Expression:
        left = self.parse_atom()
        while (sign := self.peek()) in OPERATORS and OPERATORS[sign][0] >= min_precedence:
            level, joins, makes, reading = OPERATORS[sign]
            self.position += 1
            right = self.parse_expression(level + 1)
            for part in (left, right):
                if part.is_comparison != joins:
                    wanted = "comparisons" if joins else "numbers"
                    raise self.make_error(
                        f"{sign!r} stands between {wanted}, not between {self.describe_kinds(left, right)}"
                    )
            left = _Expression(makes, _apply_operator(reading, left.evaluate, right.evaluate))
        return left

    def parse_atom(self) -> _Expression:
        found = self.tokens[self.position] if self.position < len(self.tokens) else None
        if found is None or not (found["region"] or found["number"] or found["sign"] in BRACKETS):
            raise self.make_error(
                f"a region like (1;%condition%) or a number is expected, here is {self.peek()!r}"
            )
        self.position += 1
        if found["region"]:
            region = Region(found["region"], found["condition"].strip())
            self.regions.append(region)
            return _Expression(False, lambda surprisal: surprisal(region))
        if found["number"]:
            value = float(found["number"])
            return _Expression(False, lambda _: value)
        inside = self.parse_expression()
        if self.peek() != BRACKETS[found["sign"]]:
            raise self.make_error(
                f"{BRACKETS[found['sign']]!r} is expected, here is {self.peek()!r}"
            )
        self.position += 1
        return inside

    def describe_kinds(self, *parts: _Expression) -> str:
        return " and ".join("a comparison" if part.is_comparison else "a number" for part in parts)


def _apply_operator(operator: BinaryOperator, left: Evaluator, right: Evaluator) -> Evaluator:
    return lambda surprisal: operator(left(surprisal), right(surprisal))
