"""surprisal: stimuli in, one row per word (region, sentence) out, in bits, ready for a mixed model. Prints nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from antlm_bench.checkpoints import Checkpoint, OpenOptions, open_checkpoint, opening_notes
from antlm_bench.errors import DataError, MethodNotSupported
from antlm_bench.reporting.progress import Progress
from antlm_bench.runs.table_files import Value, known_ending, write_table
from antlm_bench.scoring.multiple_choice import chunks
from antlm_bench.scoring.probes import Method, default_method
from antlm_bench.scoring.probes import method as find_method
from antlm_bench.scoring.surprisal import Read, single, stretches
from antlm_bench.scoring.text import word_beginnings
from antlm_bench.suites import stimuli
from antlm_bench.suites.stimuli import Asked
from antlm_bench.types import FLAGS, Item

Row = dict[str, Value]


@dataclass(frozen=True, slots=True)
class Surprisals:
    """What was written. rows: n stretches of `texts` texts. unscored: rows without a number because nothing stands
    before their first token, too_long: because their text does not fit into the model. flags: names out of types.FLAGS
    -> how many texts raise them by their tokens. notes: what a reader must know of the tokenizer."""

    path: Path
    method: str
    rows: tuple[Row, ...]
    texts: int
    unscored: int
    too_long: int
    flags: Mapping[str, int]
    notes: tuple[str, ...] = ()
    """What the numbers must be read with: see checkpoints.opening_notes and Checkpoint.notes."""


def surprisal(
    model: str,
    source: Path,
    out: Path,
    *,
    method: str | None = None,
    by: str = "word",
    columns: Mapping[str, str] | None = None,
    bow_correction: bool = False,
    options: OpenOptions | None = None,
) -> Surprisals:
    """Score the stimuli of a file (suites.stimuli) and write a table (runs.long): item, condition, region, word_index,
    word, the columns of the input, n_tokens, surprisal_bits.

    surprisal_bits is the sum over the tokens of -log2 P(token | what the method shows), null where one of them cannot
    be scored. method: default is the checkpoint's own. bow_correction: see scoring.reading, causal only.
    Raises UsageError, MethodNotSupported, CheckpointError, DataError, RunError; nothing is written then.
    """
    known_ending(out)
    texts = stimuli.read(source, columns)
    asked = stimuli.units(texts, by)
    checkpoint = open_checkpoint(model, options)
    name = method or default_method(checkpoint, checkpoint.methods)
    chosen = find_method(name, checkpoint)
    single(chosen)
    if bow_correction:
        _begin(checkpoint, name)
    checkpoint.test_on([one.option.text for one in asked], [chosen])
    rows: list[Row] = []
    unscored = too_long = 0
    flagged: dict[str, set[str]] = {}
    with Progress(len(asked), f"{checkpoint.name} {source.name} {name}") as progress:
        for chunk in _chunks(asked, chosen):
            read = stretches(checkpoint, [one.option for one in chunk], chosen, correct=bow_correction)
            rows += _rows(chunk, read)
            too_long += int(read.too_long.sum())
            unscored += sum(math.isnan(number) for number in read.logp) - int(read.too_long.sum())
            for n, one in enumerate(chunk):
                for flag in read.encodings.raised([n]):
                    flagged.setdefault(flag, set()).add(one.option.text)
            progress.advance(len(chunk))
    if unscored + too_long == len(rows):
        hint = "raise --max-length" if too_long else "give texts of more than one token, or see --bos"
        raise DataError("nothing can be scored", place=str(source), hint=hint)
    write_table(out, rows)
    flags = {flag: len(flagged[flag]) for flag in FLAGS if flag in flagged}
    notes = (*opening_notes(checkpoint), *checkpoint.notes(name))
    return Surprisals(out, name, tuple(rows), len(texts), unscored, too_long, flags, notes)


def _begin(checkpoint: Checkpoint, name: str) -> None:
    """Tell the engine which tokens begin a word. MethodNotSupported for masked methods, and for tokenizers that do not
    say so."""
    if name != "causal":
        raise MethodNotSupported(
            f"the correction divides by what a left-to-right model expects next; {name} sees the next word",
            place="--bow-correction",
            hint="use --method causal, or leave it out",
        )
    checkpoint.engine.begin(word_beginnings(checkpoint.encoders["causal"].tokenizer))


def _chunks(asked: Sequence[Asked], method: Method) -> Iterator[Sequence[Asked]]:
    """As suites are cut, so that memory does not grow with the file."""
    top = 0
    for part in chunks([Item(str(n), (one.option,), 0) for n, one in enumerate(asked)], [method]):
        yield asked[top : top + len(part)]
        top += len(part)


def _rows(asked: Sequence[Asked], read: Read) -> Iterator[Row]:
    for one, logp, tokens, long in zip(asked, read.logp, read.tokens, read.too_long, strict=True):
        bits = None if math.isnan(logp) else -float(logp) / math.log(2) + 0.0
        yield {**one.row, "n_tokens": None if long else int(tokens), "surprisal_bits": bits}
