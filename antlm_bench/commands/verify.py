"""`verify`: score a sample of a suite with our engine and with peers, and compare all scores.

Peers are other tools (minicons, lm-eval). They load the same folder themselves, in fp32 on the CPU.
Conventions are aligned as far as possible (sums, the BOS of `--bos`, the scored characters); the
remaining differences are listed in the result.
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
from antlm_bench.printable import format_count
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

DEFAULT_TOLERANCE = 1e-3
"""Nats. On equal inputs, peers agree to 3e-5: batches of another shape round differently."""
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

    methods: scoring methods that a peer has; () = the checkpoint's first. columns: for a file of
    pairs, our column -> its column. options: how our engine opens the checkpoint; device and dtype
    must be those of the peers, cpu and float32.

    Raises UsageError, MethodNotSupported (no peer has the method; raised before data is loaded),
    DataError, CheckpointError. A disagreement is no error here: see
    Verification.raise_on_disagreement.
    """
    if not tolerance > 0:
        raise UsageError(f"{tolerance:g} nats is not above 0", location="--tolerance")
    if limit < 1:
        raise UsageError(f"limit is {limit}; it must be 1 or more", location="--limit")
    for name in as_list(methods):
        _find_peers(name)
    options = options or OpenOptions(device="cpu")
    checkpoint = open_checkpoint(str(model), options)
    default = [default_method(checkpoint, checkpoint.methods)]
    method_names = list(dict.fromkeys(as_list(methods) or default))
    for name in method_names:
        resolve_method(name, checkpoint)
    sources = locate_sources(str(model), options)
    if conversion.detect_original(sources.base, options) is not None:
        # transformers would load it as "model_type": "bert", with most weights random.
        raise MethodNotSupported(
            f"{checkpoint.name} is in its authors' original layout, which no peer can load",
            location="--model",
            hint="only our engine can score it (docs/layouts.md)",
        )
    peers, refused = _open_peers(checkpoint, sources, method_names, options)
    if not peers:
        reasons = "".join(f"\n  {peer}, {name}: {why}" for peer, name, why in refused)
        raise MethodNotSupported(
            f"no peer can score {checkpoint.name}:{reasons}", location="--model"
        )
    refs = suites.list_suite_refs(suite)
    agreements: list[PeerAgreement] = []
    for ref in refs:
        suite_columns = columns_for_ref(ref, refs, columns)
        # A sample does not need a complete suite.
        loaded = suites.load_suite(ref, allow_incomplete=True, columns=suite_columns)
        texts = [option.text for item in loaded.items for option in item.options]
        checkpoint.run_self_test(texts, [get_method(name) for name in method_names])
        agreements += _compare_suite(checkpoint, loaded, limit, peers, tolerance)
    return Verification(checkpoint.name, tolerance, tuple(agreements), tuple(refused))


def _find_peers(method_name: str) -> list[str]:
    """Return the names of the peers that have a method.

    Raises MethodNotSupported if there is none, UsageError for an unknown method.
    """
    peers = list(get_method(method_name).peer_names)
    if not peers:
        names = [method.name for method in METHODS if method.peer_names]
        raise MethodNotSupported(
            f"no peer has the method {method_name!r}",
            location="--method",
            hint=f"methods that a peer has: {', '.join(names)}",
        )
    return peers


def _open_peers(
    checkpoint: Checkpoint,
    sources: CheckpointSources,
    method_names: Sequence[str],
    options: OpenOptions,
) -> tuple[dict[tuple[str, str], Peer], list[tuple[str, str, str]]]:
    """Return (peer, method) -> the opened peer, and (peer, method, reason) for each that cannot be.

    Each peer is opened once.
    """
    peer_by_name: dict[str, Peer] = {}
    peers: dict[tuple[str, str], Peer] = {}
    refused = []
    kind: ModelKind = "causal" if checkpoint.kind == "causal" else "masked"
    candidates = [(method, name) for method in method_names for name in _find_peers(method)]
    for method, name in candidates:
        encoder = checkpoint.encoders[get_method(method).main_attention]
        reason = _refusal_reason(name, method, kind, encoder, sources)
        if not reason and name not in peer_by_name:
            try:
                peer_by_name[name] = _open_peer(name, sources, kind, encoder, options)
            except CheckpointError as error:
                reason = error.message
        if reason:
            refused.append((name, method, reason))
        else:
            peers[name, method] = peer_by_name[name]
    return peers, refused


def _refusal_reason(
    peer: str, method_name: str, kind: ModelKind, encoder: TextEncoder, sources: CheckpointSources
) -> str:
    """Return why a peer cannot score a checkpoint with a method; "" if it can."""
    if get_method(method_name).main_attention != ("causal" if kind == "causal" else "full"):
        return f"it runs a {kind} checkpoint with its native attention only"
    if peer != "lm-eval":
        return "" if sources.adapter is None else "it cannot open a PEFT adapter"
    if not _starts_with_bos_or_eos(encoder.tokenizer, encoder.specials.before):
        return "it always puts a BOS or EOS before a text, which --bos excludes here"
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
        # transformers loads an adapter and a tokenizer in the checkpoint's own folder by itself.
        folders = {"peft": sources.adapter, "tokenizer": sources.tokenizer}
        arguments = {
            name: str(path)
            for name, path in folders.items()
            if path is not None and path != sources.base
        }
        return open_lm_eval(sources.base, trusted, arguments)
    # With None, minicons loads the tokenizer from the folder itself.
    tokenizer = encoder.tokenizer if trusted or options.tokenizer else None
    return open_minicons(
        sources.base, kind, encoder.specials, encoder.max_length, tokenizer, trusted
    )


def _starts_with_bos_or_eos(tokenizer: object, prefix_ids: tuple[int, ...]) -> bool:
    """Return whether texts begin as in lm-eval: with the BOS, or the EOS of a tokenizer without."""
    bos, eos = getattr(tokenizer, "bos_token_id", None), getattr(tokenizer, "eos_token_id", None)
    return prefix_ids == ((eos if bos is None else bos),)


def _compare_suite(
    checkpoint: Checkpoint,
    suite: Suite,
    limit: int,
    peers: dict[tuple[str, str], Peer],
    tolerance: float,
) -> list[PeerAgreement]:
    """Compare our scores of a sample of a suite with those of each peer.

    peers: (peer, method) -> the opened peer. Raises UsageError, DataError, CheckpointError.
    """
    task_type = TASK_TYPES[suite.task_type]
    if not task_type.supports_other_engines:
        raise UsageError(
            f"{suite.name} scores {task_type.scored_noun}, which peers do not compute",
            location="--suite",
            hint="give a suite of pairs",
        )
    sample = sample_evenly(suite.items, limit)
    agreements = []
    with Progress(len(peers) * len(sample), f"{checkpoint.name} {suite.name}") as progress:
        for name in dict.fromkeys(method for _, method in peers):
            method = resolve_method(name, checkpoint)
            [predictions] = multiple_choice.predict(checkpoint, sample, [method])
            fitting = np.flatnonzero(~predictions.has_flag("too-long"))
            if not len(fitting):
                message = f"none of {format_count(len(sample), 'item')} fits the model"
                raise DataError(message, location=suite.name, hint="raise --max-length")
            items = [sample[index] for index in fitting.tolist()]
            ours = predictions.take(fitting)
            notes = []
            if num_left_out := len(sample) - len(fitting):
                notes = [f"left out: {num_left_out} of {len(sample)} items do not fit the model"]
            for (peer_name, peer_method), peer in peers.items():
                if peer_method == name:
                    agreement = _compare_with_peer(
                        peer_name, peer, suite.name, name, items, ours, tolerance
                    )
                    agreements.append(replace(agreement, apart=(*notes, *agreement.apart)))
                    progress.advance(len(sample))
    return agreements


def sample_evenly(items: Sequence[Item], limit: int) -> list[Item]:
    """Return `limit` evenly spaced items, so that each paradigm has its share of the sample."""
    sample_size = min(limit, len(items))
    return [items[i * len(items) // sample_size] for i in range(sample_size)]


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
    their_scores = peer.scores(texts, spans, method_name)
    gaps = np.abs(their_scores - ours.flat("scores"))
    if not np.isfinite(gaps).all():
        message = f"{peer_name} returns scores that are not finite"
        raise CheckpointError(message, location=f"{suite} · {method_name}")
    bounds = np.cumsum([0, *(len(item.options) for item in items)])
    worst_item = int(np.searchsorted(bounds, int(gaps.argmax()), side="right")) - 1
    flips = (
        _find_flip(item_id, our_scores, their_scores[start:end], tolerance)
        for item_id, our_scores, (start, end) in zip(
            ours.ids, ours.iter_options("scores"), pairwise(bounds), strict=True
        )
    )
    aligned, apart = _alignment_notes(peer, spans)
    return PeerAgreement(
        peer=peer_version(peer_name),
        suite=suite,
        method=method_name,
        items=len(items),
        options=len(their_scores),
        largest=float(gaps.max()),
        worst=items[worst_item].id,
        mean=float(gaps.mean()),
        flips=tuple(flip for flip in flips if flip),
        aligned=aligned,
        apart=apart,
    )


def _find_flip(
    item_id: str, our_scores: Sequence[float], their_scores: Floats, tolerance: float
) -> PeerFlip | None:
    """Return the flip of an item on which the peer prefers another option, else None."""
    our_option, their_option = int(np.argmax(our_scores)), int(their_scores.argmax())
    if our_option == their_option:
        return None
    our_gap = our_scores[our_option] - our_scores[their_option]
    their_gap = float(their_scores[their_option] - their_scores[our_option])
    is_tie = max(our_gap, their_gap) <= 2 * tolerance
    return PeerFlip(item_id, our_option, their_option, our_gap, their_gap, is_tie)


def _alignment_notes(
    peer: Peer, spans: Sequence[tuple[int, int] | None]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return sentences on the aligned conventions, and on those in which the peer still differs."""
    has_contexts = any(span is not None and span[0] for span in spans)
    if not isinstance(peer, MiniconsScorer):
        aligned = ["sums of log-probabilities", "one BOS or EOS before every text"]
        if not has_contexts:
            return tuple(aligned), ()
        return (*aligned, "a BOS before contexts, written into the text"), (
            "the option starts after as many tokens as the context has alone, not at its first "
            "character",
        )
    specials = "what the tokenizer adds"
    if peer.spells_specials:
        specials = "none" if peer.specials == Specials() else "written into the text"
    aligned = ["sums of log-probabilities (its default is the mean)", f"special tokens: {specials}"]
    if has_contexts:
        aligned.append(
            "the same characters are scored: its scores per token, added up (not conditional_score)"
        )
    scores_suffix = peer.kind == "causal" and not peer.spells_specials
    if scores_suffix and detect_template(peer.scorer.tokenizer).after:
        return tuple(aligned), (
            "it scores the special tokens that the tokenizer adds after a text, as we do under "
            "--compat minicons",
        )
    return tuple(aligned), ()
