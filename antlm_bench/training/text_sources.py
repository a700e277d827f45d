"""Read training text from files, a hub dataset or a grammar, as lines with document starts.

A corpus may be larger than memory. So its lines are iterated again for every use (counting words,
training the tokenizer, encoding), and are never all in memory.
"""

from __future__ import annotations

import hashlib
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from antlm_bench.declarations import decode_utf8, expand_user_path, list_declarations
from antlm_bench.errors import DataError
from antlm_bench.printable import format_count
from antlm_bench.safe_files import read_regular_file
from antlm_bench.safe_json import parse_json
from antlm_bench.suites import grammar
from antlm_bench.suites.files import unpack_gzip
from antlm_bench.suites.sources import load_hub_rows
from antlm_bench.suites.task_types import read_declaration
from antlm_bench.types import shorten_list
from antlm_bench.words import find_unsplit_letters

Line = tuple[bool, str]
"""(whether a document begins with the line, the text without its line break)."""
EVALUATION_NAMES = frozenset(
    ("dev", "development", "val", "valid", "validation", "test", "eval", "evaluation")
)
"""Names of folders and files whose text is for evaluation. It is never trained on."""
TEXT_SUFFIXES = (".txt", ".train", ".jsonl")  # each also with .gz
# Size and seed of the training text that a grammar generates.
GRAMMAR_SENTENCES, GRAMMAR_SEED = 40_000, 1
LINES_CHECKED_FOR_SPACES = 1000


@dataclass(frozen=True, slots=True)
class TextFile:
    """A file of a training text. Datasets and grammars have one TextFile."""

    name: str
    iter_lines: Callable[[], Iterator[Line]]
    """Read the file again and yield all lines, including blank ones. After a final line break comes
    an empty line, so that `"\\n".join` of the lines is the text.
    """

    def iter_non_blank_lines(self) -> Iterator[Line]:
        """Yield the lines that are not blank; a document begins with its first non-blank line."""
        starts_document = False
        for starts, text in self.iter_lines():
            starts_document |= starts
            if text.strip():
                yield starts_document, text
                starts_document = False


@dataclass(frozen=True, slots=True)
class TextSource:
    """A training text."""

    name: str
    files: tuple[TextFile, ...]
    digest: str
    """sha256 of the content of all files."""
    left_out: tuple[str, ...] = ()
    """Names of text files in the folder that are for evaluation, and are not trained on."""


def load_text_source(ref: str) -> TextSource:
    """Return the text of a folder, a file, a suite with a grammar (`nano`), or a hub dataset.

    Of a folder, hidden files and those for evaluation (`dev/`, `test.txt`) are left out. Raises
    DataError if there is no text. Iterating the lines raises DataError, with file and line, for
    text that is not UTF-8 or not valid JSON.
    """
    path, exists = expand_user_path(ref), False
    with suppress(OSError):  # raised if the reference is too long for a file name
        exists = path.exists()
    if exists:
        return _source_from_files(path)
    if ref in list_declarations("tasks"):
        return _source_from_grammar(ref)
    if ref.count("/") == 1 and not ref.startswith((".", "/", "~")):
        return _source_from_hub(ref)
    raise DataError(
        "no such file or folder",
        location=ref,
        hint="give --corpus a folder or file of text, `nano`, or owner/name of a hub dataset",
    )


def _source_from_files(path: Path) -> TextSource:
    files = [path]
    left_out: list[Path] = []
    if not path.is_file():
        text_files = sorted(p for p in path.rglob("*") if p.is_file() and _text_suffix(p))
        files = [file for file in text_files if not _is_for_evaluation(file.relative_to(path))]
        left_out = [file.relative_to(path) for file in text_files if file not in files]
    if not files or not _text_suffix(files[0]):
        hint = f"text files end with {', '.join(TEXT_SUFFIXES)}, or these followed by .gz"
        if left_out:
            files_for_evaluation = shorten_list(list(map(str, left_out)))
            hint = f"files for evaluation are not trained on: {files_for_evaluation}"
        raise DataError("no text files found", location=str(path), hint=hint)
    digest = hashlib.sha256()
    for file in files:
        digest.update(_text_suffix(file).encode() + hashlib.sha256(_read_bytes(file)).digest())
    root = path if path.is_dir() else path.parent
    sources = (TextFile(str(f.relative_to(root)), partial(_read_lines, f)) for f in files)
    unused_files = tuple(map(str, left_out))
    return TextSource(path.resolve().name, tuple(sources), digest.hexdigest(), unused_files)


def _is_for_evaluation(file: Path) -> bool:
    """Return whether a file is hidden or for evaluation. file: relative to the corpus."""
    names = [*file.parts[:-1], file.name.partition(".")[0]]
    return any(name.startswith(".") or name.lower() in EVALUATION_NAMES for name in names) or (
        file.name.startswith(".")
    )


def describe_source(source: TextSource, num_words: int) -> str:
    """Return which files are trained on, which are left out, and the number of words.

    If some text has no spaces between words, the number of words is qualified.
    """
    files = shorten_list([file.name for file in source.files])
    left_out = f"; left out: {shorten_list(source.left_out)}" if source.left_out else ""
    words, num_files = format_count(num_words, "word"), format_count(len(source.files), "file")
    description = f"trains on {words} of {num_files} ({files}){left_out}"
    letters = _find_unspaced_letters(source)
    if not letters:
        return description
    return (
        f"{description}; words are counted by white space, which does not separate those of "
        f"{letters[:20]!r}: sizes and milestones in words count such text too low"
    )


def _find_unspaced_letters(source: TextSource) -> str:
    """Return the first letters without spaces between words, if a tenth of the lines has such
    letters; "" otherwise. The first lines of every file are looked at.
    """
    first_lines = chain.from_iterable(
        islice(file.iter_non_blank_lines(), LINES_CHECKED_FOR_SPACES) for file in source.files
    )
    letters = [find_unsplit_letters(text) for _, text in first_lines]
    unspaced = list(filter(None, letters))
    return unspaced[0] if unspaced and 10 * len(unspaced) >= len(letters) else ""


def _text_suffix(file: Path) -> str:
    """Return which of TEXT_SUFFIXES a file has, or "". A final .gz is ignored."""
    name = file.name.removesuffix(".gz")
    return next((suffix for suffix in TEXT_SUFFIXES if name.endswith(suffix)), "")


def _read_bytes(file: Path) -> bytes:
    try:
        return read_regular_file(file)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", location=str(file)) from None


def _read_lines(file: Path) -> Iterator[Line]:
    """Yield the lines of a file. It is one document, or a .jsonl with one document per line."""
    raw = _read_bytes(file)
    if file.suffix == ".gz":
        try:
            raw = unpack_gzip(raw, str(file), max_bytes=sys.maxsize)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"damaged gzip file: {error}", location=str(file)) from None
    text = decode_utf8(raw, str(file), DataError)
    lines = text.split("\n")
    if _text_suffix(file) == ".jsonl":
        for line_number, line in enumerate(lines, 1):
            if line.strip():
                document = _parse_json_line(line, f"{file}:{line_number}")
                yield from _document_lines(document)
    else:
        yield from _mark_document_start(iter(lines))


def _mark_document_start(lines: Iterator[str]) -> Iterator[Line]:
    """Yield the lines of one document."""
    starts_document = True
    for line in lines:
        yield starts_document, line.removesuffix("\r")
        starts_document = False


def _document_lines(text: str) -> Iterator[Line]:
    """Yield the lines of a document, and a line break, so that no word spans two documents."""
    return _mark_document_start(iter([*text.removesuffix("\n").split("\n"), ""]))


def _parse_json_line(line: str, location: str) -> str:
    """Return the text of a line of a .jsonl. Raises DataError."""
    try:
        row: Any = parse_json(line, allow_nan=True)
    except ValueError as error:
        raise DataError(f"not JSON: {error}", location=location) from None
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise DataError("no string under the key 'text'", location=location)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"not valid Unicode: half of a surrogate pair at character {error.start}",
            location=location,
        ) from None
    return text


def _source_from_grammar(ref: str) -> TextSource:
    rules = getattr(read_declaration(ref)[0], "grammar", None)
    if rules is None:
        raise DataError(
            f"the suite {ref!r} has no grammar to generate text from",
            location="--corpus",
            hint="give a folder of text",
        )
    digest = hashlib.sha256(rules.model_dump_json().encode()).hexdigest()

    def lines() -> Iterator[Line]:
        sentences = grammar.generate_sentences(rules, GRAMMAR_SENTENCES, GRAMMAR_SEED)
        return _mark_document_start(chain(sentences, [""]))

    return TextSource(ref, (TextFile(ref, lines),), digest)


def _source_from_hub(ref: str) -> TextSource:
    """Return the split `train` of a hub dataset: the `text` of every row is a document."""
    rows = load_hub_rows(ref, "train")
    digest = hashlib.sha256()
    for row in rows:
        digest.update(_row_text(row, ref).encode() + b"\n")

    def lines() -> Iterator[Line]:
        for row in rows:
            yield from _document_lines(_row_text(row, ref))

    return TextSource(ref, (TextFile(ref, lines),), digest.hexdigest())


def _row_text(row: Any, ref: str) -> str:
    text = row.get("text")
    if not isinstance(text, str):
        raise DataError(
            f"its rows have {', '.join(row)}, but no string in the column 'text'", location=ref
        )
    return text


def limit_words(source: TextSource, max_words: int | None) -> TextSource:
    """Keep the first lines of every file, about `max_words` words in all.

    Every file is cut by the same share.
    """
    if max_words is None:
        return source
    counts = [
        sum(count_words(text) for _, text in file.iter_non_blank_lines()) for file in source.files
    ]
    if sum(counts) <= max_words:
        return source
    limits = [round(max_words * count / sum(counts)) for count in counts]
    files = (
        TextFile(file.name, partial(_take_words, file, limit))
        for file, limit in zip(source.files, limits, strict=True)
    )
    digest = hashlib.sha256(f"{source.digest} {max_words}".encode()).hexdigest()
    return TextSource(source.name, tuple(files), digest)


def _take_words(text_file: TextFile, remaining_words: int) -> Iterator[Line]:
    """Yield lines until they have `remaining_words` words."""
    for starts_document, text in text_file.iter_lines():
        if remaining_words <= 0:
            return
        remaining_words -= count_words(text)
        yield starts_document, text


def hold_out_lines(source: TextSource, share: float) -> tuple[TextSource, TextSource]:
    """Return (the text to train on, the last `share` of every file's lines).

    The number of lines is rounded as in BabyLlama-2's code.
    """
    train, held_out = [], []
    for file in source.files:
        is_text = [text != "" for _, text in file.iter_lines()]
        num_lines = len(is_text) - (is_text[-1:] == [False])  # without an empty last line
        cut = round((1 - share) * num_lines)
        train.append(TextFile(file.name, partial(_slice_lines, file, 0, cut)))
        held_out.append(TextFile(file.name, partial(_slice_lines, file, cut, num_lines)))
    train_digest, held_out_digest = (
        hashlib.sha256(f"{source.digest} {share} {name}".encode()).hexdigest()
        for name in ("kept", "rest")
    )
    return (
        TextSource(source.name, tuple(train), train_digest),
        TextSource(source.name, tuple(held_out), held_out_digest),
    )


def _slice_lines(text_file: TextFile, first: int, end: int) -> Iterator[Line]:
    """Yield lines first .. end - 1; a document begins with line `first`."""
    for index, (starts, text) in enumerate(islice(text_file.iter_lines(), first, end)):
        yield starts or index == 0, text


def count_words(text: str) -> int:
    """Count the words of a text as BabyLM does, by splitting at white space."""
    return len(text.split())


class LineBlock(NamedTuple):
    """Lines of one document, with their line breaks."""

    starts_document: bool
    """Whether the document begins with this block."""
    lines: list[str]


def iter_document_blocks(lines: Iterator[Line], block_size: int = 8192) -> Iterator[LineBlock]:
    """Yield documents in blocks of about `block_size` lines, including blank lines.

    A document is cut only at a line break between two characters that are not white space, so that
    a tokenizer that splits at white space gives the same tokens for the blocks as for the document.
    """
    block, starts_document = list[str](), True
    for starts, text in lines:
        if block and starts:
            yield from _make_block(starts_document, block)
            block, starts_document = [], True
        elif block:
            can_cut = block[-1] and not block[-1][-1].isspace() and text and not text[0].isspace()
            block[-1] += "\n"
            if len(block) >= block_size and can_cut:
                yield from _make_block(starts_document, block)
                block, starts_document = [], False
        block.append(text)
    yield from _make_block(starts_document, block)


def _make_block(starts_document: bool, lines: list[str]) -> Iterator[LineBlock]:
    """Yield one block without an empty last line, or nothing if no line remains."""
    block = lines if lines and lines[-1] else lines[:-1]
    if block:
        yield LineBlock(starts_document, block)


def batch_lines(lines: Iterator[Line], batch_size: int = 8192) -> Iterator[list[Line]]:
    """Yield lists of up to `batch_size` lines."""
    while block := list(islice(lines, batch_size)):
        yield block
