"""The self-test of a checkpoint: compare the engine with the model's plain forward.

A reference log-probability comes from the model's plain forward: of a row with one masked token
under full attention, of a prefix of a text under causal attention. To save forwards, one forward
computes several of them, if a sample of them, each computed in a forward of its own, is the same.
If the log-probabilities of the engine differ by more than TOLERANCE, shortcuts of the engine are
turned off (each alone, then several) until they agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from antlm_bench.checkpoints.forward_trials import (
    CAUSALITY_TOLERANCE,
    FORWARD_ERRORS,
    logit_change_from_last_token,
)
from antlm_bench.errors import CheckpointError, UsageError
from antlm_bench.scoring.engine import Engine, lock_model
from antlm_bench.scoring.forward_config import CPU_KERNELS, SHORTCUTS
from antlm_bench.scoring.logit_readers import widen
from antlm_bench.scoring.plain_forward import attention_mask_inputs, plain_logits
from antlm_bench.scoring.probes import infill, seq2seq
from antlm_bench.scoring.tokens import can_tokenize, probe_texts
from antlm_bench.types import Attention, Bools, Floats, Ints, LanguageModel, Probes

TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.5}
"""dtype -> largest difference of one log-probability (nats). Rounding stays below it; an error such
as a wrong position id does not. Some layers of a model in float64 compute in float32."""
TRIAL_TEXTS = (
    "The cats near the house sleep.",
    "Who has seen that the dogs never see the old house?",
)
MAX_PREDICTIONS = 12  # per text and attention
MAX_FORWARD_TOKENS = 512
"""Most tokens of several rows in one plain forward. The logits of a token take 0.5 MB if the
vocabulary is large."""
PAIR_ATTENTIONS: dict[str, Callable[..., Probes]] = {"cross": seq2seq, "denoising": infill}
"""Attention of encoder-decoders -> the probes that are compared."""


class EngineModel(LanguageModel, Protocol):
    """A language model that runs on an engine."""

    engine: Engine


@dataclass(frozen=True, slots=True)
class SelfTestResult:
    """The comparison of an engine with the plain forward."""

    num_texts: int
    num_predictions: int
    largest_difference: float
    """Largest difference of a log-probability, in nats."""
    disabled_shortcuts: tuple[str, ...] = ()

    def to_record(self) -> dict[str, Any]:
        """Return the entry of run.json.

        The difference is rounded up to a power of ten, because its digits vary between machines.
        """
        upper_bound = float(10.0 ** np.ceil(np.log10(max(self.largest_difference, 1e-6))))
        return {
            "texts": self.num_texts,
            "predictions": self.num_predictions,
            "largest_nats_below": upper_bound,
            "disabled": list(self.disabled_shortcuts),
        }


def run_self_test(
    checkpoint: EngineModel,
    texts: Sequence[str],
    attentions: Iterable[str] | None = None,
    max_predictions: int = MAX_PREDICTIONS,
) -> SelfTestResult:
    """Compare the engine with the plain forward on `texts`, and turn off the shortcuts that make it
    differ.

    attentions: the attentions to compare, by default all of the checkpoint. max_predictions: per
    text and attention. Texts that are too long for the model are left out. Raises CheckpointError
    if the engine differs without any shortcut, too, because the model gives different outputs for
    the same input, or sees later tokens.
    """
    engine = checkpoint.engine
    counts = engine.nodes_computed, engine.head_rows_computed, engine.batches_computed
    try:
        with lock_model(engine.model):
            return _compare_with_plain_forward(
                checkpoint, texts, sorted(attentions or checkpoint.attentions), max_predictions
            )
    finally:
        # The counters are for scored texts only.
        engine.nodes_computed, engine.head_rows_computed, engine.batches_computed = counts


def _compare_with_plain_forward(
    checkpoint: EngineModel,
    texts: Sequence[str],
    attentions: Sequence[str],
    max_predictions: int,
) -> SelfTestResult:
    engine = checkpoint.engine
    # Without masks, the plain forward has the native attention only.
    runnable = [
        name
        for name in attentions
        if name in (engine.forward_config.native_attention, *PAIR_ATTENTIONS)
        or engine.forward_config.obeys_masks
    ]
    trials = list(_trial_probes(checkpoint, texts, runnable, max_predictions))
    probes = [text_probes for _, text_probes in trials]
    num_texts = len({text for text, _ in trials})
    num_predictions = sum(len(text_probes.row) for text_probes in probes)
    if not num_predictions:
        return SelfTestResult(0, 0, 0.0)
    tolerance = TOLERANCE[next(engine.model.parameters()).dtype]
    with engine.without_shortcuts([name for name in engine.shortcuts if name == CPU_KERNELS]):
        expected = _plain_logprobs(engine, probes, tolerance)
    if np.isnan(expected).any():
        raise CheckpointError(
            f"{checkpoint.name} returns NaN",
            hint="the weights are damaged, or the dtype overflows: try --dtype float32",
        )

    def largest_difference(disabled: Sequence[str]) -> float:
        with engine.without_shortcuts(disabled):
            try:
                scores = engine.score_probes(probes, len(expected))
            except FORWARD_ERRORS:
                return float("inf")
        return _largest_gap(scores, expected)

    largest = largest_difference(())
    if largest <= tolerance:
        return SelfTestResult(num_texts, num_predictions, largest)
    for disabled in _shortcut_sets(engine.shortcuts):
        remaining = largest_difference(disabled)
        if remaining <= tolerance:
            _check_no_lookahead(engine, probes, disabled)
            for name in disabled:
                engine.disable_shortcut(name)
            return SelfTestResult(num_texts, num_predictions, remaining, tuple(disabled))
    raise CheckpointError(
        f"{checkpoint.name}: our engine and the plain forward of {type(engine.model).__name__} "
        f"differ by up to {largest:.2g} nats, with every shortcut turned off too",
        hint="a forward that depends on chance or on earlier calls cannot be scored: run the model "
        "twice on one row and compare",
    )


def _shortcut_sets(shortcuts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield sets of shortcuts to turn off: each alone, then more and more of them."""
    yield from ([name] for name in shortcuts)
    yield from (shortcuts[:end] for end in range(2, len(shortcuts) + 1))
    yield list(SHORTCUTS)


def _check_no_lookahead(engine: Engine, probes: Sequence[Probes], disabled: Sequence[str]) -> None:
    """Raise CheckpointError for a causal model that agrees only if each prefix is a row, because it
    sees later tokens in a whole row.
    """
    if "one row per text" not in disabled or engine.forward_config.native_attention != "causal":
        return
    longest = max((p.ids for p in probes if p.attention == "causal"), key=lambda ids: ids.shape[1])
    ids = torch.from_numpy(longest[:1].astype(np.int64)).to(engine.model.device)
    change = logit_change_from_last_token(engine.model, ids)
    if change > CAUSALITY_TOLERANCE:
        raise CheckpointError(
            f"{engine.name}: in rows of {ids.shape[1]} tokens a change of the last token moves the "
            f"logits before it by {change:.1g} of the largest: the model sees later tokens",
            hint="it cannot be scored left to right at that length: see --max-length",
        )


def _trial_probes(
    checkpoint: EngineModel,
    texts: Sequence[str],
    attentions: Sequence[str],
    max_predictions: int,
) -> Iterator[tuple[int, Probes]]:
    """Yield (index of the text, its probes) for each text and attention.

    In the probes, every prediction has its own text index, so that single log-probabilities are
    compared.
    """
    num_predictions = 0
    for name in attentions:
        if name in PAIR_ATTENTIONS:
            for index, probes in _pair_probes(checkpoint, texts, name, max_predictions):
                yield index, _number_predictions(probes, num_predictions)
                num_predictions += len(probes.row)
            continue
        attention: Attention = "causal" if name == "causal" else "full"
        if attention == "full" and checkpoint.mask_id is None:
            continue
        for encoded in checkpoint.encode(texts, [None] * len(texts), attention).batches:
            for ids, scored, index in zip(
                encoded.ids, encoded.score_mask, encoded.text_index, strict=True
            ):
                positions = _spread_positions(scored, attention, max_predictions)
                rows = [ids]
                if attention == "causal" and num_predictions == 0 and len(positions) > 1:
                    # The first text also backwards, so that two rows have one length.
                    backwards = ids.copy()
                    backwards[scored] = ids[scored][::-1]
                    rows.append(backwards)
                for row in rows:
                    mask_id = checkpoint.mask_id if attention == "full" else None
                    yield int(index), _build_probes(row, positions, mask_id, num_predictions)
                    num_predictions += len(positions)


def _pair_probes(
    checkpoint: EngineModel, texts: Sequence[str], name: str, max_predictions: int
) -> Iterator[tuple[int, Probes]]:
    """Yield (index of the text, its probes) for an encoder-decoder. Under "cross", each text stands
    after an empty source, and after the text before it as its source.
    """
    num_texts = len(texts)
    if name == "cross":
        sources = [*texts[-1:], *texts[:-1]]
        try:
            repeated, all_sources = [*texts, *texts], [*[""] * num_texts, *sources]
            encodings = checkpoint.encode(repeated, [None] * len(repeated), "cross", all_sources)
        except UsageError:  # without special tokens, an encoder cannot read an empty source
            encodings = checkpoint.encode(texts, [None] * num_texts, "cross", sources)
    else:
        encodings = checkpoint.encode(texts, [None] * num_texts, "denoising")
    for encoded in encodings.batches:
        for row, index in enumerate(encoded.text_index):
            part = slice(row, row + 1)
            positions = _spread_positions(encoded.score_mask[row], "full", max_predictions)
            score_mask = np.zeros_like(encoded.score_mask[part])
            score_mask[0, positions] = True
            single = replace(
                encoded,
                ids=encoded.ids[part],
                score_mask=score_mask,
                word_ids=encoded.word_ids[part],
                text_index=encoded.text_index[part],
                last_word_ids=None,
                source_ids=None if encoded.source_ids is None else encoded.source_ids[part],
            )
            yield int(index) % num_texts, PAIR_ATTENTIONS[name](single, checkpoint.mask_id)


def _number_predictions(probes: Probes, first_text: int) -> Probes:
    """Return probes whose predictions each have a text index of their own, from `first_text` on."""
    return replace(probes, text_index=(first_text + np.arange(len(probes.row))).astype(np.int32))


def _build_probes(ids: Ints, positions: Ints, mask_id: int | None, first_text: int) -> Probes:
    """Return the probes that predict the tokens of a row at `positions`.

    mask_id: replaces the predicted token, in one row per prediction, under full attention. None:
    one row under causal attention. first_text: text index of the first prediction; the others
    follow.
    """
    count = len(positions)
    texts = (first_text + np.arange(count)).astype(np.int32)
    if mask_id is None:
        row_indices = np.zeros(count, np.int32)
        return Probes(ids[None, :-1], "causal", row_indices, positions - 1, ids[positions], texts)
    rows = np.repeat(ids[None], count, 0)
    row_indices = np.arange(count, dtype=np.int32)
    rows[row_indices, positions] = mask_id
    return Probes(rows, "full", row_indices, positions, ids[positions], texts)


def _spread_positions(scored: Bools, attention: Attention, max_positions: int) -> Ints:
    """Return up to `max_positions` scored positions of a row, spread over it."""
    positions = np.nonzero(scored)[0]
    if attention == "causal":
        positions = positions[positions > 0]
    if len(positions):
        steps = np.linspace(0, len(positions) - 1, max_positions).round().astype(int)
        positions = positions[np.unique(steps)]
    return positions.astype(np.int32)


def _plain_logprobs(engine: Engine, probes: Sequence[Probes], tolerance: float) -> Floats:
    """Return log-probabilities by the model's plain forward, under full attention of one row per
    prediction, otherwise of one prefix per prediction.

    Predictions of one text are read off one forward: of all its rows, or of its whole row. Samples
    of each text are also computed by themselves. If any differs, every prediction is.
    """
    logprobs = np.zeros(1 + max(int(text) for p in probes for text in p.text_index))
    engine.set_attention(engine.forward_config.native_implementation)
    groups = [(p, reads) for p in probes for reads in _group_reads(p)]
    for number, (p, reads) in enumerate(groups):
        together = _joint_logprobs(engine, p, reads, number, tolerance)
        if together is None:
            break
        logprobs[p.text_index[reads]] = together
    else:
        return logprobs
    for p, reads in groups:
        logprobs[p.text_index[reads]] = _single_logprobs(engine, p, reads)
    return logprobs


def _group_reads(p: Probes) -> Iterator[NDArray[np.int64]]:
    """Yield the indices of reads that can share a forward: under full attention those of a few
    rows, otherwise those of one row.
    """
    if p.attention == "full":
        size = max(1, MAX_FORWARD_TOKENS // p.ids.shape[1])
        yield from (
            np.arange(len(p.row))[start : start + size] for start in range(0, len(p.row), size)
        )
    else:
        yield from (np.flatnonzero(p.row == row) for row in np.unique(p.row))


def _joint_logprobs(
    engine: Engine, p: Probes, reads: NDArray[np.int64], number: int, tolerance: float
) -> Floats | None:
    """Return the log-probabilities of some reads by one forward, None if samples differ from it.

    number: of these reads among all. The samples vary with it, because a model may see later tokens
    at some positions only.
    """
    count = len(reads)
    if p.attention == "full":
        checked = sorted({number % count, (number + count // 2) % count})
    else:  # the last prefix is the row, and the one before it has seen the most positions
        inner = max(1, count - 2)
        checked = sorted({number % inner, (number + inner // 2) % inner, max(0, count - 2)})
    if count <= len(checked) + 1:
        return _single_logprobs(engine, p, reads)
    try:
        together = _forward_logprobs(engine, p, reads, whole_rows=True)
    except FORWARD_ERRORS:  # the model takes one row at a time, or no row of that length
        return None
    for index in checked:
        # A prefix also has the reads before its end, so that no later token is seen there, either.
        sample = reads[[index]] if p.attention == "full" else reads[: index + 1]
        alone = _forward_logprobs(engine, p, sample)
        start = index + 1 - len(alone)
        if not _largest_gap(together[start : index + 1], alone) <= tolerance:
            return None
        together[index] = alone[-1]
    return together


def _single_logprobs(engine: Engine, p: Probes, reads: NDArray[np.int64]) -> Floats:
    """Return the log-probabilities of some reads, by a forward for each."""
    return np.concatenate([_forward_logprobs(engine, p, reads[[n]]) for n in range(len(reads))])


def _forward_logprobs(
    engine: Engine, p: Probes, reads: NDArray[np.int64], whole_rows: bool = False
) -> Floats:
    """Return the log-probabilities of some reads, by one plain forward of their rows.

    whole_rows: without it, tokens after the last read are left out, unless attention is full.
    """
    rows, row_of_read = np.unique(p.row[reads], return_inverse=True)
    has_all = whole_rows or p.attention == "full"
    ids = p.ids[rows] if has_all else p.ids[rows, : p.position[reads[-1]] + 1]
    inputs = {"input_ids": ids}
    if p.source_ids is not None:
        inputs = {"input_ids": p.source_ids[rows], "decoder_input_ids": ids}
    device = next(engine.model.parameters()).device
    tensors = {
        name: torch.from_numpy(values.astype(np.int64)).to(device)
        for name, values in inputs.items()
    }
    if p.source_ids is None and p.attention != engine.forward_config.native_attention:
        masks = attention_mask_inputs(ids.shape[1], p.attention)
        tensors |= {n: m.expand(len(ids), -1, -1, -1).to(device) for n, m in masks.items()}
    with torch.inference_mode():
        logits = plain_logits(engine.model, **tensors)
        logits = widen(logits[torch.from_numpy(row_of_read), p.position[reads].tolist()])
        targets = torch.from_numpy(p.target[reads].astype(np.int64)).to(device)
        logprobs = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    if engine.model_state is not None:
        engine.model_state.restore()
    return np.asarray(logprobs.cpu().double().numpy())


def _largest_gap(scores: Floats, expected: Floats) -> float:
    """Return the largest difference in nats; nan if any value is nan.

    Equal infinities do not differ: a model gives minus infinity to ids that it excludes.
    """
    with np.errstate(invalid="ignore"):
        return float(np.where(scores == expected, 0.0, np.abs(scores - expected)).max())


def trial_texts(tokenizer: Any) -> list[str]:
    """Return the TRIAL_TEXTS that the tokenizer can read.

    If it can read none, return texts of words from its vocabulary, or [] if it cannot read these.
    """
    texts = [text for text in TRIAL_TEXTS if can_tokenize(tokenizer, text)]
    if texts:
        return texts
    readable_words = (word for word in probe_texts(tokenizer) if can_tokenize(tokenizer, word))
    words = list(islice(readable_words, 8))
    candidates = dict.fromkeys((" ".join(words[:3]), " ".join(words)))
    return [text for text in candidates if text and can_tokenize(tokenizer, text)]


def select_texts_by_length(texts: Sequence[str], count: int = 5) -> list[str]:
    """Return up to `count` different texts from the shortest to the longest.

    The result does not depend on the order of `texts`.
    """
    if not texts:
        return []
    by_length = sorted(sorted(set(texts)), key=len)  # of equal length: in alphabetical order
    indices = np.linspace(0, len(by_length) - 1, count).round().astype(int).tolist()
    return [by_length[index] for index in dict.fromkeys(indices)]
