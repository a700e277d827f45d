"""JSON of strangers: one error for numbers, nesting and syntax."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antlm_bench.safe_json import MAX_DEPTH, parse_json

FINITE = st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | FINITE | st.text()
DOCUMENTS = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


@given(DOCUMENTS)
def test_ordinary_documents_are_read_as_json_reads_them(document: object) -> None:
    text = json.dumps(document)

    assert parse_json(text) == parse_json(text.encode()) == document


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": [0, {"b": 1e999}]}', r"^a\.1\.b: should be a finite number of 64 bits, not 1e999$"),
        ('{"a": 1' + "0" * 400 + "}", r"^a: should be .*, not 10000000000000000000\.\.\.$"),
        ("9223372036854775808", "^should be a finite number of 64 bits, not 9223372036854775808$"),
        ("[NaN]", "^0: should be .* not NaN$"),
        ("[-Infinity]", "^0: should be .* not -Infinity$"),
        ("[" * 900 + "]" * 900, f"nested deeper than {MAX_DEPTH} levels"),
        ("[" * 100_000, f"nested deeper than {MAX_DEPTH} levels"),
        ("{", "Expecting"),
    ],
)
def test_unreadable_text_is_one_error(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(text)
    with pytest.raises(ValueError, match=message):
        parse_json(text.encode())


def test_nesting_up_to_the_limit_is_read() -> None:
    text = "[" * MAX_DEPTH + "]" * MAX_DEPTH

    assert json.dumps(parse_json(text)) == text


def test_nan_is_read_where_python_writes_it() -> None:
    assert math.isnan(parse_json("NaN", allow_nan=True))
    assert parse_json("[-Infinity]", allow_nan=True) == [-math.inf]
