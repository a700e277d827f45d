"""`verify`: score a sample of a suite with our engine and with its peers, and compare all numbers.

The peers load the same folder by themselves, in fp32 on the CPU. What can be aligned is aligned
(sums, the BOS of `--bos`, the characters that count); the rest is stated beside the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from antlm_bench.checkpoints import Checkpoint, OpenOptions, conversion, open_checkpoint
from antlm_bench.checkpoints.resolve import CheckpointSources, locate_sources
from antlm_bench.errors import (
    CheckpointError,
    DataError,
    MethodNotSupported,
    UsageError,
)
from antlm_bench.predictions import Predictions
from antlm_bench.progress import Progress
from antlm_bench.results.verification import PeerAgreement, PeerFlip, Verification
from antlm_bench.scoring import multiple_choice
from antlm_bench.scoring.methods import METHODS, default_method, get_method, resolve_method
from antlm_bench.scoring.peers import (
    LmEvalScorer,
    MiniconsScorer,
    ModelKind,
    open_lm_eval,
    open_minicons,
    peer_version,
)
from antlm_bench.scoring.text import Specials, TextEncoder, detect_template
from antlm_bench.suites import loader as suites
from antlm_bench.suites.pairs_csv import columns_for_ref
from antlm_bench.suites.task_types import TASK_TYPES, Suite
from antlm_bench.types import Floats, Item, Names, as_list

# In nats. Peers agree to 3e-5 where the inputs are the same: batches of other shapes round
# differently.
DEFAULT_TOLERANCE = 1e-3
Peer = MiniconsScorer | LmEvalScorer


def verify(
    model: str | Path,
    suite: Names,
    *,
    limit: int = 100,
    methods: Names = (),
    columns: Mapping[str, str] | None = None,
    tolerance: float = DEFAULT_TOLERANCE,
    options: OpenOptions | None = None,
) -> Verification:
    """Score `limit` items of every suite, evenly spaced, with our engine and with every peer.

    methods: those that a peer has; () = the checkpoint's first. columns: of files of pairs, our
    column -> theirs. options: how our engine opens the checkpoint (revision, bos, max_length,
    allow_pickle, trust_remote_code), in fp32 on the CPU, as the peers do.

    Raises UsageError, MethodNotSupported (no peer has that method; before any data is loaded),
    DataError, CheckpointError. A disagreement raises nothing here, see raise_on_disagreement.
    """
    if not tolerance > 0:
        raise UsageError(f"{tolerance:g} is not a number of nats above 0", location="--tolerance")
    if limit < 1:
        raise UsageError(f"limit is {limit}; it must be 1 or more", location="--limit")
    for name in as_list(methods):
        _find_peers(name)
    options = options or OpenOptions(device="cpu")
    checkpoint = open_checkpoint(str(model), options)
    default = [default_method(checkpoint, checkpoint.methods)]
    names = list(dict.fromkeys(as_list(methods) or default))
    for name in names:
        resolve_method(name, checkpoint)
    sources = locate_sources(str(model), options)
    if conversion.detect_original(sources.base, options) is not None:
        # Transformers would trust its "model_type": "bert", and leave most weights random.
        raise MethodNotSupported(
            f"{checkpoint.name} is saved in its authors' own layout, which no peer can load",
            location="--model",
            hint="only our engine converts it: there is nothing to compare ours with",
        )
    opened, refused = _open_peers(checkpoint, sources, names, options)
    if not opened:
        reasons = "".join(f"\n  {peer}, {name}: {why}" for peer, name, why in refused)
        raise MethodNotSupported(
            f"no peer can score {checkpoint.name} this way:{reasons}", location="--model"
        )
    parts = (part for ref in as_list(suite) for part in suites.list_suite_refs(ref))
    refs = list(dict.fromkeys(parts))
    agreements: list[PeerAgreement] = []
    for ref in refs:
        suite_columns = columns_for_ref(ref, refs, columns)
        # A sample does not need a complete suite.
        loaded = suites.load_suite(ref, allow_incomplete=True, columns=suite_columns)
        texts = [option.text for item in loaded.items for option in item.options]
        checkpoint.run_self_test(texts, [get_method(name) for name in names])
        agreements += _compare_suite(checkpoint, loaded, limit, names, opened, tolerance)
    return Verification(checkpoint.name, tolerance, tuple(agreements), tuple(refused))


def _find_peers(method_name: str) -> list[str]:
    """Return the peers that have a method.

    Raises MethodNotSupported where there is none, UsageError for an unknown method.
    """
    peers = list(get_method(method_name).peer_names)
    if not peers:
        names = [method.name for method in METHODS if method.peer_names]
        raise MethodNotSupported(
            f"no peer scores with {method_name!r}: there is nothing to compare ours with",
            location="--method",
            hint=f"one of {', '.join(names)}",
        )
    return peers


def _open_peers(
    checkpoint: Checkpoint,
    sources: CheckpointSources,
    method_names: Sequence[str],
    options: OpenOptions,
) -> tuple[dict[tuple[str, str], Peer], list[tuple[str, str, str]]]:
    """Return (peer, method) -> the peer, opened once; and (peer, method, why not) of others."""
    opened: dict[str, Peer] = {}
    pairs: dict[tuple[str, str], Peer] = {}
    refused = []
    kind: ModelKind = "causal" if checkpoint.kind == "causal" else "masked"
    candidates = [(method, peer) for method in method_names for peer in _find_peers(method)]
    for name, peer in candidates:
        encoder = checkpoint.encoders[get_method(name).main_attention]
        reason = _refusal_reason(peer, name, kind, encoder, sources)
        if not reason:
            try:
                opened[peer] = opened.get(peer) or _open_peer(peer, sources, kind, encoder, options)
                pairs[peer, name] = opened[peer]
            except CheckpointError as error:
                reason = error.message
        if reason:
            refused.append((peer, name, reason))
    return pairs, refused


def _refusal_reason(
    peer: str, method_name: str, kind: ModelKind, encoder: TextEncoder, sources: CheckpointSources
) -> str:
    """Return why a peer cannot score a checkpoint with a method; "" where it can."""
    if get_method(method_name).main_attention != ("causal" if kind == "causal" else "full"):
        return f"it runs a {kind} checkpoint with its own attention only"
    if peer != "lm-eval":
        return "" if sources.adapter is None else "it cannot open a PEFT adapter"
    if not _starts_with_bos_or_eos(encoder.tokenizer, encoder.specials.before):
        return "it always reads one BOS or EOS before a text, which --bos does not want here"
    cuts_vocabulary = encoder.vocab_size != len(encoder.tokenizer)
    if sources.adapter not in (None, sources.base) and cuts_vocabulary:
        sizes = f"{len(encoder.tokenizer)} of {encoder.vocab_size} tokens"
        return f"with an adapter it cuts the vocabulary to the tokenizer's {sizes}"
    return ""


def _open_peer(
    peer_name: str,
    sources: CheckpointSources,
    kind: ModelKind,
    encoder: TextEncoder,
    options: OpenOptions,
) -> Peer:
    """Open a peer with the same weights, adapter and tokenizer. Raises CheckpointError."""
    trusted = options.trust_remote_code
    if peer_name == "lm-eval":
        adapter = (
            sources.adapter if sources.adapter != sources.base else None
        )  # transformers loads one beside weights
        parts = {
            "peft": adapter,
            "tokenizer": sources.tokenizer if sources.tokenizer != sources.base else None,
        }
        more = {name: str(path) for name, path in parts.items() if path is not None}
        return open_lm_eval(sources.base, trusted, more)
    # Otherwise minicons loads the tokenizer from the folder itself.
    tokenizer = encoder.tokenizer if trusted or options.tokenizer else None
    return open_minicons(
        sources.base, kind, encoder.specials, encoder.max_length, tokenizer, trusted
    )


def _starts_with_bos_or_eos(tokenizer: object, prefix_ids: tuple[int, ...]) -> bool:
    """Whether a row begins as lm-eval's does: with BOS, or EOS where there is none."""
    bos, eos = getattr(tokenizer, "bos_token_id", None), getattr(tokenizer, "eos_token_id", None)
    return prefix_ids == ((eos if bos is None else bos),)


def _compare_suite(
    checkpoint: Checkpoint,
    suite: Suite,
    limit: int,
    method_names: Sequence[str],
    peers: dict[tuple[str, str], Peer],
    tolerance: float,
) -> list[PeerAgreement]:
    task_type = TASK_TYPES[suite.task_type]
    if not task_type.any_engine:
        raise UsageError(
            f"{suite.name} asks for {task_type.answer_noun}, not for texts",
            location="--suite",
            hint="give a suite of choices",
        )
    sample = sample_evenly(suite.items, limit)
    agreements = []
    with Progress(len(peers) * len(sample), f"{checkpoint.name} {suite.name}") as progress:
        for name in method_names:
            method = resolve_method(name, checkpoint)
            [predictions] = multiple_choice.predict(checkpoint, sample, [method])
            fitting = np.flatnonzero(~predictions.has_flag("too-long"))
            if not len(fitting):
                message = f"none of {len(sample)} items fits the model"
                raise DataError(message, location=suite.name, hint="raise --max-length")
            items, ours = [sample[index] for index in fitting.tolist()], predictions.take(fitting)
            note = (
                f"{len(sample) - len(fitting)} of {len(sample)} items do not fit the model, "
                "and were left out"
            )
            notes = (note,) if len(fitting) < len(sample) else ()
            for (peer, peer_method), scorer in peers.items():
                if peer_method == name:
                    agreement = _compare_with_peer(
                        peer, scorer, suite.name, name, items, ours, tolerance
                    )
                    agreements.append(replace(agreement, apart=notes + agreement.apart))
                    progress.advance(len(sample))
    return agreements


def sample_evenly(items: Sequence[Item], limit: int) -> list[Item]:
    """Return `limit` items, evenly spaced over a suite, so that each paradigm gets its share."""
    n = min(limit, len(items))
    return [items[i * len(items) // n] for i in range(n)]


def _compare_with_peer(
    peer_name: str,
    peer: Peer,
    suite: str,
    method_name: str,
    items: Sequence[Item],
    ours: Predictions,
    tolerance: float,
) -> PeerAgreement:
    texts = [option.text for item in items for option in item.options]
    spans = [option.span for item in items for option in item.options]
    flat = peer.scores(texts, spans, method_name)
    bounds = np.cumsum([0, *(len(item.options) for item in items)])
    theirs = [flat[start:end] for start, end in pairwise(bounds)]
    gaps = np.abs(flat - ours.flat("scores"))
    if not np.isfinite(gaps).all():
        message = f"{peer_name} gives scores that are not finite"
        raise CheckpointError(message, location=f"{suite} · {method_name}")
    worst = int(np.searchsorted(bounds, int(gaps.argmax()), side="right")) - 1
    flips = (
        _find_flip(item_id, our_scores, their_scores, tolerance)
        for item_id, our_scores, their_scores in zip(
            ours.ids, ours.iter_options("scores"), theirs, strict=True
        )
    )
    aligned, apart = _alignment_notes(peer, spans)
    return PeerAgreement(
        peer=peer_version(peer_name),
        suite=suite,
        method=method_name,
        items=len(items),
        options=len(flat),
        largest=float(gaps.max()),
        worst=items[worst].id,
        mean=float(gaps.mean()),
        flips=tuple(flip for flip in flips if flip),
        aligned=aligned,
        apart=apart,
    )


def _find_flip(
    item_id: str, ours: Sequence[float], theirs: Floats, tolerance: float
) -> PeerFlip | None:
    our_option, their_option = int(np.argmax(ours)), int(theirs.argmax())
    if our_option == their_option:
        return None
    margin = ours[our_option] - ours[their_option]
    their_margin = float(theirs[their_option] - theirs[our_option])
    tie = max(margin, their_margin) <= 2 * tolerance
    return PeerFlip(item_id, our_option, their_option, margin, their_margin, tie)


def _alignment_notes(
    peer: Peer, spans: Sequence[tuple[int, int] | None]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what was aligned for the comparison, and what the peer does in its own way."""
    has_contexts = any(span is not None and span[0] for span in spans)
    if not isinstance(peer, MiniconsScorer):
        aligned = ["sums of log-probabilities", "one BOS or EOS before every text"]
        if not has_contexts:
            return tuple(aligned), ()
        return (*aligned, "a BOS before contexts: spelled"), (
            "context and option are told apart by counting the context's own tokens, "
            "not by characters",
        )
    specials = "what the tokenizer adds"
    if peer.spells_specials:
        specials = "none" if peer.specials == Specials() else "spelled into the text"
    aligned = ["sums of log-probabilities (its default is the mean)", f"special tokens: {specials}"]
    if has_contexts:
        aligned.append(
            "the same characters count: its scores per token, added up (not its conditional_score)"
        )
    scores_suffix = peer.kind == "causal" and not peer.spells_specials
    if scores_suffix and detect_template(peer.scorer.tokenizer).after:
        return tuple(aligned), (
            "it scores the special tokens that the tokenizer adds after a text: "
            "as --compat minicons",
        )
    return tuple(aligned), ()
