"""Thousands of odd files of pairs and declarations, scored: an error of ours with its place, or the
right answer.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from prediction_rows import read_rows
from score_helpers import make_agreement_rows
from tiny_models import train_tokenizer

from antlm_bench import score
from antlm_bench.checkpoints import Checkpoint, OpenOptions
from antlm_bench.checkpoints.opening import LocatedCheckpoint
from antlm_bench.checkpoints.resolve import CheckpointSources
from antlm_bench.commands.score_session import ScoreSession
from antlm_bench.errors import BenchError, DataError, DeclarationError
from antlm_bench.scoring.text import Specials, TextEncoder
from antlm_bench.suites import loader
from antlm_bench.types import Floats

Make = Callable[..., Path]
NANO = Path(__file__).resolve().parents[2] / "tasks" / "nano.toml"
EVERY = list(HealthCheck)


class Instant:
    """Stands for a model: a real tokenizer, scores out of the air (an odd mix of ties, differences
    and depths).
    """

    nodes, model = 0, None

    def without_shortcuts(self, names: Any) -> AbstractContextManager[None]:
        return nullcontext()

    def score_probes(self, probes: Any, num_texts: int, tick: Any = None) -> Floats:
        scores = np.zeros(num_texts)
        for p in probes:
            np.subtract.at(scores, p.text_index, 1.0 + p.target % 3)
        return scores


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> None:
    """`score` opens an Instant, whatever it is told; nothing waits for the disk."""
    monkeypatch.setattr("os.fsync", lambda _: None)
    tokenizer = train_tokenizer("causal", adds=True)
    encoder = TextEncoder(tokenizer, Specials((1,)), max_length=64, vocab_size=len(tokenizer))
    facts = dict.fromkeys(("architecture", "dtype", "bos", "specials", "config", "tokenizer"), "x")
    model = Checkpoint(
        name="instant", kind="causal", attentions=frozenset({"causal"}), eos="</s>", mask_id=3,
        max_length=64,
        engine=Instant(), encoders={"causal": encoder}, metadata={**facts, "weights": "0" * 64,
        "max_length": 64},
    )  # type: ignore[arg-type]  # fmt: skip
    folder = Path("instant")
    located = LocatedCheckpoint("instant", CheckpointSources(folder, folder), OpenOptions())
    monkeypatch.setattr("antlm_bench.commands.score.locate_checkpoint", lambda *_: located)
    monkeypatch.setattr("antlm_bench.commands.score.hash_inputs", lambda *_: "")
    monkeypatch.setattr(ScoreSession, "open", lambda *_: model)
    monkeypatch.setattr("antlm_bench.commands.score_cells._self_test", lambda *_: {})


def asked(ref: str, out: Path, **options: Any) -> loader.Suite | BenchError:
    """What scoring a suite gives: the suite, after a look at the whole run it left, or an error
    that left none.
    """
    shutil.rmtree(out, ignore_errors=True)
    try:
        [found] = score("instant", ref, out=out, **options)
    except BenchError as error:
        assert (
            error.message and not list(out.rglob("run.json")) and not list(out.rglob("*.parquet"))
        )
        return error
    suite = loader.load_suite(ref, **options)
    [cell] = found
    assert [p.id for p in read_rows(out, cell)] == [item.id for item in suite.items]
    assert cell.summary.headline.n == len(suite.items) and 0 <= cell.summary.headline.value <= 1
    assert (
        not list(out.rglob("*.tmp"))
        and not (out / ".lock").exists()
        and not (out / "partial").exists()
    )
    return suite


# ---- files of pairs
# ----------------------------------------------------------------------------------------------

ODD = [
    "",
    " ",
    "\u00a0",
    "\x85",
    "\u2028",
    "\ufeff",
    "\x1b[0m",
    "\x01",
    "\r",
    "\n",
    "\r\n",
    '"',
    '""',
    "'",
    ",",
    ";",
    "\t",
    "\\",
]
ODD += [
    "=1+1",
    "{good}",
    "{",
    "}",
    "{0}",
    "%s",
    "<s>",
    "<unk>",
    "é",
    "e\u0301",
    "🏳️‍🌈",
    "\u202e",
    "a" * 300,
    "null",
    "NaN",
    "-0",
]
PLAIN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
TEXT = st.lists(st.sampled_from(ODD) | PLAIN, max_size=3).map("".join)
PAIR = ["the girl runs", "the girl run", "agreement", "x", "1"]  # a row without faults
NAME = st.sampled_from(
    [
        "good",
        "bad",
        "sentence_good",
        "sentence_bad",
        "id",
        "field",
        "paradigm",
        "UID",
        "other",
        "",
        "{good}",
    ]
)
BYTES = [
    b"\x00",
    b"\xff",
    b"\xed\xa0\x80",
    b"\xc0\x80",
    b'"',
    b"\n",
    b"\r",
    b",",
    b"{",
    b"\xef\xbb\xbf",
    b"a" * 200_000,
]
SPOIL = st.none() | st.tuples(st.integers(0, 200), st.integers(0, 3), st.sampled_from(BYTES))


def spoiled(raw: bytes, spoil: tuple[int, int, bytes] | None) -> bytes:
    """The bytes with something odd put in place of a few of them."""
    return raw if spoil is None else raw[: spoil[0]] + spoil[2] + raw[spoil[0] + spoil[1] :]


@pytest.mark.long
@pytest.mark.usefixtures("instant")
@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_any_file_of_pairs_is_scored_rightly_or_refused_with_its_place(
    tmp_path: Path, ending: str
) -> None:
    path = tmp_path / f"pairs.{ending}"
    kinds = set()

    @settings(max_examples=350, deadline=None, suppress_health_check=EVERY)
    @given(
        header=st.just(["good", "bad"])
        | st.permutations(["good", "bad", "paradigm"])
        | st.lists(NAME, max_size=5),
        rows=st.lists(st.just(PAIR) | st.lists(TEXT, min_size=5, max_size=5), max_size=5),
        spoil=SPOIL,
        uneven=st.sampled_from([0] * 12 + [-1, 1]),
    )
    @example(header=["good", "bad"], rows=[PAIR] * 3, spoil=None, uneven=0)
    def check(
        header: list[str], rows: list[list[str]], spoil: tuple[int, int, bytes] | None, uneven: int
    ) -> None:
        rows = [row[: len(header)] for row in rows]
        if ending == "jsonl":
            text = "\n".join(json.dumps(dict(zip(header, row, strict=False))) for row in rows)
        else:
            out = io.StringIO(newline="")
            writer = csv.writer(out, delimiter="," if ending == "csv" else "\t")
            writer.writerow(header)
            writer.writerows(
                [*rows[:-1], rows[-1][: len(header) + uneven] + ["more"] * (uneven > 0)]
                if rows
                else []
            )
            text = out.getvalue()
        path.write_bytes(spoiled(text.encode(), spoil))
        found = asked(str(path), tmp_path / "run")
        kinds.add(type(found))
        if isinstance(found, BenchError):
            assert isinstance(found, DataError) and (
                found.location.startswith((str(path), "item "))
            )
        elif spoil is None and uneven == 0 and len(set(header)) == len(header):
            records = [dict(zip(header, row, strict=True)) for row in rows]
            good, bad = (
                ("good" if "good" in header else "sentence_good"),
                ("bad" if "bad" in header else "sentence_bad"),
            )
            assert [tuple(o.text for o in item.options) for item in found.items] == [
                (r[good], r[bad]) for r in records
            ]

    check()
    assert kinds == {loader.Suite, DataError}


# ---- declarations
# ------------------------------------------------------------------------------------------------

SMALL = """kind = "suite"
name = "small"
version = "1"
title = "a small suite"
licence = "none"
citation = "none"
metric = "accuracy"
groups = ["phenomenon", "paradigm"]
macro = ["paradigm"]
notes = ["of a test"]
[item]
options = [{ context = "so ", scored = "{good}" }, { context = "so ", scored = "{bad}" }]
gold = 0
id = "{paradigm}_{number}"
skip = { field = "good", containing = "girl" }
[labels]
phenomenon = "{phenomenon}"
paradigm = "{paradigm}"
[rename.phenomenon]
binding = "bound"
[data]
where = ["{stem}.jsonl", "{file}"]
[data.files]
"small.jsonl" = { rows = 12 }
[expect]
items = 10
[expect.counts]
number = 3
object = 4
gender = 3
[[example]]
file = "small.jsonl"
record = { good = "a", bad = "b", paradigm = "p", phenomenon = "binding", number = 1 }
options = ["so a", "so b"]
scored = ["a", "b"]
labels = { phenomenon = "bound", paradigm = "p" }
id = "p_1"
"""
MENU = """
"" "x" "{" "}" "{}" "{good}" "{good.x}" "{bad[0]}" "{file}" "../x" "/etc/passwd" 0 -1 1.5 nan inf
true [] [[]] {} [
["paradigm"] ["good","good"] {x=1} 1979-05-27 "\\u0000" "\\u001b" "é" "spearman" "collection"
"small.jsonl" "good"
"number" [{scored="{good}"}] [{scored="{each}"},{scored="{bad}"}]
"""
VALUES = [*MENU.split(), "9" * 400, "[" * 300 + "]" * 300, '"' + "x" * 3000 + '"']
CHANGE = st.tuples(st.sampled_from(["drop", "value", "value", "key", "double", "swap", "insert"]),
st.integers(0, 400),
                   st.sampled_from(VALUES), st.text(max_size=5))  # fmt: skip


def mutated(text: str, changes: list[tuple[str, int, str, str]]) -> str:
    """Lines dropped, doubled, exchanged, given other values or keys, or something put in
    between.
    """
    lines = text.splitlines()
    for what, where, value, odd in changes:
        at = where % len(lines)
        key, equals, _ = lines[at].partition(" = ")
        if what == "drop" and len(lines) > 1:
            del lines[at]
        elif what == "value" and equals:
            lines[at] = f"{key} = {value}"
        elif what == "key" and equals:
            lines[at] = lines[at].replace(
                key, key[:-1] if where % 2 else f'"{value.strip(chr(34))}"', 1
            )
        elif what == "double":
            lines.insert(at, lines[at])
        elif what == "swap":
            other = (at + 7) % len(lines)
            lines[at], lines[other] = lines[other], lines[at]
        else:
            lines.insert(at, odd if where % 2 else f"{odd} = {value}")
    return "\n".join(lines) + "\n"


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A suite of one's own, its data beside it, no other data anywhere and no net."""

    def offline(*_: object, **__: object) -> None:
        raise OSError("no network in tests")

    (tmp_path / "none").mkdir()
    monkeypatch.setenv("ANTLM_BENCH_DATA", str(tmp_path / "none"))
    monkeypatch.setenv("ANTLM_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("urllib.request.urlopen", offline)
    rows = [
        json.dumps({**row, "number": number}) for number, row in enumerate(make_agreement_rows(12))
    ]
    (tmp_path / "small.jsonl").write_text("\n".join(rows))
    (tmp_path / "small.toml").write_text(SMALL)
    return tmp_path / "small.toml"


@pytest.mark.long
@pytest.mark.usefixtures("instant")
def test_any_mutation_of_a_suite_is_scored_or_refused_with_its_place(small: Path) -> None:
    kinds = set()
    whole = asked(str(small), small.parent / "run", allow_incomplete=True)
    assert not isinstance(whole, BenchError)

    @settings(max_examples=350, deadline=None, suppress_health_check=EVERY)
    @given(st.lists(CHANGE, min_size=1, max_size=3))
    def check(changes: list[tuple[str, int, str, str]]) -> None:
        path = small.with_name("mutated.toml")
        path.write_text(mutated(SMALL, changes), encoding="utf-8")
        found = asked(str(path), small.parent / "run", allow_incomplete=True)
        kinds.add(type(found))
        assert not isinstance(found, BenchError) or found.location or found.hint

    check()
    assert {loader.Suite, DataError, DeclarationError} <= kinds


@pytest.mark.long
def test_any_mutation_of_nano_loads_or_is_refused(tmp_path: Path) -> None:
    head, _, rest = (
        NANO.read_text(encoding="utf-8").replace("pairs = 50", "pairs = 4").partition("[expect]")
    )
    text, path = head + "[grammar]" + rest.split("[grammar]", 1)[1], tmp_path / "mutated.toml"

    @settings(max_examples=120, deadline=None, suppress_health_check=EVERY)
    @given(st.lists(CHANGE, min_size=1, max_size=3))
    def check(changes: list[tuple[str, int, str, str]]) -> None:
        path.write_text(mutated(text, changes), encoding="utf-8")
        try:
            suite = loader.load_suite(str(path))
        except BenchError as error:
            assert isinstance(error, DeclarationError | DataError) and (
                error.location or error.hint
            )
        else:
            assert suite.items and all(
                option.text.strip() for item in suite.items for option in item.options
            )

    check()
