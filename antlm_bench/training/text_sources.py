"""Where training text comes from: files, a hub dataset or a grammar, as lines that know where a document begins.

Text is read again for every use (counting, the tokenizer, the tokens) and never held whole: a corpus may be larger
than memory. Blank lines say nothing and are left out where a corpus is made of lines; nothing else is changed.
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

from antlm_bench.declarations import catalog, decode_utf8, find, user_path
from antlm_bench.errors import DataError
from antlm_bench.suites import grammar
from antlm_bench.suites.sources import hub_rows
from antlm_bench.suites.spec import SuiteSpec, read

Line = tuple[bool, str]  # whether a document begins here, and the text without its line end
ENDINGS = (".txt", ".train", ".jsonl")  # each also with .gz
SENTENCES, GRAMMAR_SEED = 40_000, 1  # of a grammar's training text


@dataclass(frozen=True, slots=True)
class Part:
    """One file (or what stands for one), read anew at every call.

    raw: all of its lines, the blank ones too. A file that ends with a line break ends with an empty line here, so that
    joining the lines gives the text again.
    """

    name: str
    raw: Callable[[], Iterator[Line]]

    def lines(self) -> Iterator[Line]:
        """Its lines without the blank ones; a document begins at its first line that is none."""
        opens = False
        for begins, text in self.raw():
            opens |= begins
            if text.strip():
                yield opens, text
                opens = False


@dataclass(frozen=True, slots=True)
class Source:
    """A training text: its parts, and a digest of everything in them."""

    name: str
    parts: tuple[Part, ...]
    digest: str


def source(ref: str) -> Source:
    """The text behind a folder, a file, the name of a suite with a grammar (`nano`), or a hub dataset's id.

    Raises DataError where there is no text, or where it is not UTF-8 or not JSON: naming file and line.
    """
    path, there = user_path(ref), False
    with suppress(OSError):  # a name too long for any file is the name of none
        there = path.exists()
    if there:
        return _files(path)
    if ref in catalog("tasks"):
        return _grammar(ref)
    if ref.count("/") == 1 and not ref.startswith((".", "/", "~")):
        return _hub(ref)
    raise DataError(
        "no such file or folder", place=ref, hint="--corpus takes a folder of text, `nano`, or owner/name of the hub"
    )


def _files(path: Path) -> Source:
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    texts = [file for file in found if _ending(file)]
    if not texts:
        raise DataError(
            "no text here", place=str(path), hint=f"files ending in {', '.join(ENDINGS)}, each also with .gz"
        )
    digest = hashlib.sha256()
    for file in texts:
        digest.update(_ending(file).encode() + hashlib.sha256(_bytes(file)).digest())
    root = path if path.is_dir() else path.parent
    parts = [Part(str(file.relative_to(root)), partial(_lines, file)) for file in texts]
    return Source(path.resolve().name, tuple(parts), digest.hexdigest())


def _ending(file: Path) -> str:
    """The kind of text in a file, "" for none."""
    name = file.name.removesuffix(".gz")
    return next((ending for ending in ENDINGS if name.endswith(ending)), "")


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", place=str(file)) from None


def _lines(file: Path) -> Iterator[Line]:
    """The lines of one file. A record of a .jsonl begins a document; a text file is one."""
    raw = _bytes(file)
    if file.suffix == ".gz":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"damaged gzip file: {error}", place=str(file)) from None
    text = decode_utf8(raw, str(file), DataError)
    numbered = enumerate(text.split("\n"), 1)
    if _ending(file) == ".jsonl":
        for number, line in numbered:
            if line.strip():
                yield from _document(_ended(_record(line, f"{file}:{number}")))
    else:
        yield from _document(line for _, line in numbered)


def _document(lines: Iterator[str]) -> Iterator[Line]:
    opens = True
    for line in lines:
        yield opens, line.removesuffix("\r")
        opens = False


def _ended(text: str) -> Iterator[str]:
    """The lines of a record; a line break ends it, so that two records do not run into one word."""
    return iter([*text.removesuffix("\n").split("\n"), ""])


def _record(line: str, place: str) -> str:
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}", place=place) from None
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise DataError("a record needs its text as a string under the key 'text'", place=place)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"no text: half of a surrogate pair at character {error.start}", place=place) from None
    return text


def _grammar(ref: str) -> Source:
    spec = read(find("tasks", ref))
    if not isinstance(spec, SuiteSpec) or spec.grammar is None:
        raise DataError(f"{ref!r} has no grammar to make text from", place="--corpus", hint="give a folder of text")
    rules = spec.grammar
    digest = hashlib.sha256(rules.model_dump_json().encode()).hexdigest()

    def lines() -> Iterator[Line]:
        return _document(chain(grammar.corpus(rules, SENTENCES, GRAMMAR_SEED), [""]))

    return Source(ref, (Part(ref, lines),), digest)


def _hub(ref: str) -> Source:
    """A hub dataset's split `train`: every row's `text` is a document."""
    rows = hub_rows(ref, "train")
    digest = hashlib.sha256()
    for row in rows:
        digest.update(_text(row, ref).encode() + b"\n")

    def lines() -> Iterator[Line]:
        for row in rows:
            yield from _document(_ended(_text(row, ref)))

    return Source(ref, (Part(ref, lines),), digest.hexdigest())


def _text(row: Any, ref: str) -> str:
    text = row.get("text")
    if not isinstance(text, str):
        raise DataError(f"its rows hold {', '.join(row)}, but no text under the key 'text'", place=ref)
    return text


def limited(whole: Source, words: int | None) -> Source:
    """The first lines of every part, so many that the parts keep their shares and all hold about `words` words."""
    if words is None:
        return whole
    counts = [sum(count_words(text) for _, text in part.lines()) for part in whole.parts]
    if sum(counts) <= words:
        return whole
    shares = [round(words * count / sum(counts)) for count in counts]
    kept = [Part(part.name, partial(_until, part, share)) for part, share in zip(whole.parts, shares, strict=True)]
    return Source(whole.name, tuple(kept), hashlib.sha256(f"{whole.digest} {words}".encode()).hexdigest())


def _until(part: Part, words: int) -> Iterator[Line]:
    for opens, text in part.raw():
        if words <= 0:
            return
        words -= count_words(text)
        yield opens, text


def split(whole: Source, share: float) -> tuple[Source, Source]:
    """The text to train on, and the last `share` of every part's lines, rounded as BabyLlama-2's authors do."""
    kept, rest = [], []
    for part in whole.parts:
        lines = [text != "" for _, text in part.raw()]
        count = len(lines) - (lines[-1:] == [False])  # the empty line behind the last line break is none
        cut = round((1 - share) * count)
        kept.append(Part(part.name, partial(_lines_of, part, 0, cut)))
        rest.append(Part(part.name, partial(_lines_of, part, cut, count)))
    digests = (hashlib.sha256(f"{whole.digest} {share} {name}".encode()).hexdigest() for name in ("kept", "rest"))
    return Source(whole.name, tuple(kept), next(digests)), Source(whole.name, tuple(rest), next(digests))


def _lines_of(part: Part, first: int, end: int) -> Iterator[Line]:
    """Lines first .. end - 1; the first begins a document even where it was in the middle of one."""
    for number, (opens, text) in enumerate(islice(part.raw(), first, end)):
        yield opens or number == 0, text


def count_words(text: str) -> int:
    """Words as BabyLM counts them: what stands between white space."""
    return len(text.split())


class Block(NamedTuple):
    """Lines of one document, with their line breaks. opens: whether the document begins with them."""

    opens: bool
    lines: list[str]


def whole_blocks(lines: Iterator[Line], size: int = 8192) -> Iterator[Block]:
    """Documents in blocks of about `size` lines, blank ones too, cut where a tokenizer that splits at white space
    cannot tell: at a line break between two characters that are no white space."""
    block, opens = list[str](), True
    for begins, text in lines:
        if block and begins:
            yield from _block(opens, block)
            block, opens = [], True
        elif block:
            alone = block[-1] and not block[-1][-1].isspace() and text and not text[0].isspace()
            block[-1] += "\n"
            if len(block) >= size and alone:
                yield from _block(opens, block)
                block, opens = [], False
        block.append(text)
    yield from _block(opens, block)


def _block(opens: bool, lines: list[str]) -> Iterator[Block]:
    """Without the empty line behind the last line break."""
    kept = lines if lines and lines[-1] else lines[:-1]
    if kept:
        yield Block(opens, kept)


def blocks(lines: Iterator[Line], size: int = 8192) -> Iterator[list[Line]]:
    while block := list(islice(lines, size)):
        yield block
