"""Where training text comes from: files, a hub dataset or a grammar, as lines that know where a
document begins.

Text is read again for every use (counting, the tokenizer, the tokens) and never held whole: a
corpus may be larger than memory. Blank lines say nothing and are left out where a corpus is made of
lines; nothing else is changed.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from antlm_bench.declarations import catalog, decode_utf8, expand_user_path, find_declaration
from antlm_bench.errors import DataError
from antlm_bench.suites import grammar
from antlm_bench.suites.sources import load_hub_rows
from antlm_bench.suites.spec import SuiteSpec, read_spec

Line = tuple[bool, str]  # whether a document begins here, and the text without its line end
TEXT_SUFFIXES = (".txt", ".train", ".jsonl")  # each also with .gz
GRAMMAR_SENTENCES, GRAMMAR_SEED = 40_000, 1  # of a grammar's training text


@dataclass(frozen=True, slots=True)
class TextFile:
    """One file (or what stands for one), read anew at every call.

    raw: all of its lines, the blank ones too. A file that ends with a line break ends with an empty
    line here, so that joining the lines gives the text again.
    """

    name: str
    iter_lines: Callable[[], Iterator[Line]]

    def iter_non_blank_lines(self) -> Iterator[Line]:
        """Its lines without the blank ones; a document begins at its first line that is none."""
        opens = False
        for begins, text in self.iter_lines():
            opens |= begins
            if text.strip():
                yield opens, text
                opens = False


@dataclass(frozen=True, slots=True)
class TextSource:
    """A training text: its parts, and a digest of everything in them."""

    name: str
    files: tuple[TextFile, ...]
    digest: str


def load_text_source(ref: str) -> TextSource:
    """The text behind a folder, a file, the name of a suite with a grammar (`nano`), or a hub
    dataset's id.

    Raises DataError where there is no text, or where it is not UTF-8 or not JSON: naming file and
    line.
    """
    path, there = expand_user_path(ref), False
    with suppress(OSError):  # a name too long for any file is the name of none
        there = path.exists()
    if there:
        return _source_from_files(path)
    if ref in catalog("tasks"):
        return _source_from_grammar(ref)
    if ref.count("/") == 1 and not ref.startswith((".", "/", "~")):
        return _source_from_hub(ref)
    raise DataError(
        "no such file or folder",
        location=ref,
        hint="--corpus takes a folder of text, `nano`, or owner/name of the hub",
    )


def _source_from_files(path: Path) -> TextSource:
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    texts = [file for file in found if _text_suffix(file)]
    if not texts:
        raise DataError(
            "no text here",
            location=str(path),
            hint=f"files ending in {', '.join(TEXT_SUFFIXES)}, each also with .gz",
        )
    digest = hashlib.sha256()
    for file in texts:
        digest.update(_text_suffix(file).encode() + hashlib.sha256(_read_bytes(file)).digest())
    root = path if path.is_dir() else path.parent
    parts = [TextFile(str(file.relative_to(root)), partial(_read_lines, file)) for file in texts]
    return TextSource(path.resolve().name, tuple(parts), digest.hexdigest())


def _text_suffix(file: Path) -> str:
    """The kind of text in a file, "" for none."""
    name = file.name.removesuffix(".gz")
    return next((ending for ending in TEXT_SUFFIXES if name.endswith(ending)), "")


def _read_bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", location=str(file)) from None


def _read_lines(file: Path) -> Iterator[Line]:
    """The lines of one file. A record of a .jsonl begins a document; a text file is one."""
    raw = _read_bytes(file)
    if file.suffix == ".gz":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"damaged gzip file: {error}", location=str(file)) from None
    text = decode_utf8(raw, str(file), DataError)
    numbered = enumerate(text.split("\n"), 1)
    if _text_suffix(file) == ".jsonl":
        for number, line in numbered:
            if line.strip():
                yield from _mark_document_start(
                    _split_record(_parse_record(line, f"{file}:{number}"))
                )
    else:
        yield from _mark_document_start(line for _, line in numbered)


def _mark_document_start(lines: Iterator[str]) -> Iterator[Line]:
    opens = True
    for line in lines:
        yield opens, line.removesuffix("\r")
        opens = False


def _split_record(text: str) -> Iterator[str]:
    """The lines of a record; a line break ends it, so that two records do not run into one word."""
    return iter([*text.removesuffix("\n").split("\n"), ""])


def _parse_record(line: str, location: str) -> str:
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}", location=location) from None
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise DataError(
            "a record needs its text as a string under the key 'text'", location=location
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"no text: half of a surrogate pair at character {error.start}", location=location
        ) from None
    return text


def _source_from_grammar(ref: str) -> TextSource:
    spec = read_spec(find_declaration("tasks", ref))
    if not isinstance(spec, SuiteSpec) or spec.grammar is None:
        raise DataError(
            f"{ref!r} has no grammar to make text from",
            location="--corpus",
            hint="give a folder of text",
        )
    rules = spec.grammar
    digest = hashlib.sha256(rules.model_dump_json().encode()).hexdigest()

    def lines() -> Iterator[Line]:
        return _mark_document_start(
            chain(grammar.generate_sentences(rules, GRAMMAR_SENTENCES, GRAMMAR_SEED), [""])
        )

    return TextSource(ref, (TextFile(ref, lines),), digest)


def _source_from_hub(ref: str) -> TextSource:
    """A hub dataset's split `train`: every row's `text` is a document."""
    rows = load_hub_rows(ref, "train")
    digest = hashlib.sha256()
    for row in rows:
        digest.update(_row_text(row, ref).encode() + b"\n")

    def lines() -> Iterator[Line]:
        for row in rows:
            yield from _mark_document_start(_split_record(_row_text(row, ref)))

    return TextSource(ref, (TextFile(ref, lines),), digest.hexdigest())


def _row_text(row: Any, ref: str) -> str:
    text = row.get("text")
    if not isinstance(text, str):
        raise DataError(
            f"its rows hold {', '.join(row)}, but no text under the key 'text'", location=ref
        )
    return text


def limit_words(source: TextSource, max_words: int | None) -> TextSource:
    """The first lines of every part, so many that the parts keep their shares and all hold about
    `words` words.
    """
    if max_words is None:
        return source
    counts = [
        sum(count_words(text) for _, text in part.iter_non_blank_lines()) for part in source.files
    ]
    if sum(counts) <= max_words:
        return source
    shares = [round(max_words * count / sum(counts)) for count in counts]
    kept = [
        TextFile(part.name, partial(_take_words, part, share))
        for part, share in zip(source.files, shares, strict=True)
    ]
    return TextSource(
        source.name,
        tuple(kept),
        hashlib.sha256(f"{source.digest} {max_words}".encode()).hexdigest(),
    )


def _take_words(text_file: TextFile, remaining_words: int) -> Iterator[Line]:
    for opens, text in text_file.iter_lines():
        if remaining_words <= 0:
            return
        remaining_words -= count_words(text)
        yield opens, text


def hold_out_lines(source: TextSource, share: float) -> tuple[TextSource, TextSource]:
    """The text to train on, and the last `share` of every part's lines, rounded as BabyLlama-2's
    authors do.
    """
    kept, rest = [], []
    for part in source.files:
        lines = [text != "" for _, text in part.iter_lines()]
        count = len(lines) - (
            lines[-1:] == [False]
        )  # the empty line behind the last line break is none
        cut = round((1 - share) * count)
        kept.append(TextFile(part.name, partial(_slice_lines, part, 0, cut)))
        rest.append(TextFile(part.name, partial(_slice_lines, part, cut, count)))
    digests = (
        hashlib.sha256(f"{source.digest} {share} {name}".encode()).hexdigest()
        for name in ("kept", "rest")
    )
    return TextSource(source.name, tuple(kept), next(digests)), TextSource(
        source.name, tuple(rest), next(digests)
    )


def _slice_lines(text_file: TextFile, first: int, end: int) -> Iterator[Line]:
    """Lines first .. end - 1; the first begins a document even where it was in the middle of one.
    """
    for number, (opens, text) in enumerate(islice(text_file.iter_lines(), first, end)):
        yield opens or number == 0, text


def count_words(text: str) -> int:
    """Words as BabyLM counts them: what stands between white space."""
    return len(text.split())


class LineBlock(NamedTuple):
    """Lines of one document, with their line breaks. opens: whether the document begins with them.
    """

    starts_document: bool
    lines: list[str]


def iter_document_blocks(lines: Iterator[Line], block_size: int = 8192) -> Iterator[LineBlock]:
    """Documents in blocks of about `size` lines, blank ones too, cut where a tokenizer that splits
    at white space cannot tell: at a line break between two characters that are no white space.
    """
    block, opens = list[str](), True
    for begins, text in lines:
        if block and begins:
            yield from _make_block(opens, block)
            block, opens = [], True
        elif block:
            alone = block[-1] and not block[-1][-1].isspace() and text and not text[0].isspace()
            block[-1] += "\n"
            if len(block) >= block_size and alone:
                yield from _make_block(opens, block)
                block, opens = [], False
        block.append(text)
    yield from _make_block(opens, block)


def _make_block(starts_document: bool, lines: list[str]) -> Iterator[LineBlock]:
    """Without the empty line behind the last line break."""
    kept = lines if lines and lines[-1] else lines[:-1]
    if kept:
        yield LineBlock(starts_document, kept)


def batch_lines(lines: Iterator[Line], batch_size: int = 8192) -> Iterator[list[Line]]:
    while block := list(islice(lines, batch_size)):
        yield block
