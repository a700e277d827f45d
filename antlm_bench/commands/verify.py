"""`verify`: score a sample of a suite with our engine and with peers, and compare all scores.

Peers are other tools (minicons, lm-eval). They load the same folder themselves, in fp32 on the CPU.
Conventions are aligned as far as possible (sums, the BOS of `--bos`, the scored characters). The
result lists the differences that remain. lm-eval scores our tokens, so that engines are compared on
equal input. Where its own tokens differ from ours, it scores them, too, and the result has both
comparisons.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from antlm_bench.checkpoints.opening import open_checkpoint
from antlm_bench.checkpoints.resolve import CheckpointSources, OpenOptions, locate_sources
from antlm_bench.commands.work_estimates import estimate_work
from antlm_bench.errors import (
    CheckpointError,
    DataError,
    MethodNotSupported,
    UsageError,
)
from antlm_bench.predictions import Predictions
from antlm_bench.printable import format_count
from antlm_bench.progress import Progress, Workload
from antlm_bench.results.verification import OtherTokens, PeerAgreement, PeerFlip, Verification
from antlm_bench.scoring import multiple_choice
from antlm_bench.scoring.methods import (
    METHODS,
    Method,
    default_method,
    get_method,
    peer_version,
    resolve_method,
)
from antlm_bench.scoring.peers import (
    LmEvalScorer,
    MiniconsScorer,
    ModelKind,
    TokenRequest,
    open_lm_eval,
    open_minicons,
)
from antlm_bench.scoring.source_text import PairEncoder
from antlm_bench.scoring.text import Specials, TextEncoder, detect_template
from antlm_bench.suites import loader as suites
from antlm_bench.suites.pair_files import select_format
from antlm_bench.suites.task_types import TASK_TYPES, Suite, SuiteRequest
from antlm_bench.types import (
    TOO_LONG_HINT,
    Attention,
    Encodings,
    Floats,
    Item,
    Names,
    Option,
    as_list,
)
from antlm_bench.weight_files import read_json

if TYPE_CHECKING:
    from antlm_bench.checkpoints import Checkpoint

DEFAULT_TOLERANCE = 1e-3
"""Nats. On equal inputs, peers agree to 3e-5: batches of another shape round differently."""
Peer = MiniconsScorer | LmEvalScorer
NATIVE_ATTENTION: dict[ModelKind, Attention] = {
    "causal": "causal", "masked": "full", "encoder-decoder": "cross",
}  # fmt: skip


def verify(
    model: str | Path,
    suite: Names,
    *,
    limit: int = 100,
    methods: Names = (),
    columns: Mapping[str, str] | None = None,
    layout: str = "",
    good: str = "",
    tolerance: float = DEFAULT_TOLERANCE,
    options: OpenOptions | None = None,
) -> Verification:
    """Score `limit` items of every suite, evenly spaced, with our engine and with every peer.

    methods: scoring methods that a peer has; () = the checkpoint's first. columns, layout, good:
    how a file of pairs is read (suites.task_types.SuiteRequest). options: how our engine opens the
    checkpoint; device and dtype must be those of the peers, cpu and float32.

    Raises UsageError, MethodNotSupported (no peer has the method; raised before data is loaded),
    DataError, CheckpointError. A disagreement raises nothing here: see
    Verification.raise_on_disagreement.
    """
    if not tolerance > 0:
        raise UsageError(f"{tolerance:g} nats is not above 0", location="--tolerance")
    if limit < 1:
        raise UsageError(f"limit is {limit}; it must be 1 or more", location="--limit")
    for name in as_list(methods):
        _find_peers(name)
    refs = suites.list_suite_refs(suite)
    options = options or OpenOptions(device="cpu")
    checkpoint = open_checkpoint(str(model), options)
    from antlm_bench.checkpoints import conversion  # imports torch

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
            hint="only our engine can score it (docs/reference/layouts.md)",
        )
    peers, refused = _open_peers(checkpoint, sources, method_names, options)
    if not peers:
        reasons = "".join(f"\n  {peer}, {name}: {why}" for peer, name, why in refused)
        raise MethodNotSupported(
            f"no peer can score {checkpoint.name}:{reasons}", location="--model"
        )
    agreements: list[PeerAgreement] = []
    with Progress(parts=("suite", len(refs))) as progress:
        for ref in refs:
            progress.next_part(f"{checkpoint.name} {ref}")
            formats = {"columns": columns, "layout": layout, "good": good}
            # A sample does not need a complete suite.
            request = SuiteRequest(ref, allow_incomplete=True, **select_format(ref, refs, formats))
            loaded = suites.load_requested_suite(request)
            texts = [option.text for item in loaded.items for option in item.options]
            checkpoint.run_self_test(texts, [get_method(name) for name in method_names])
            items = _sample_items(loaded, limit)
            agreements += _compare_suite(checkpoint, loaded.name, items, peers, tolerance, progress)
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
    kind = cast("ModelKind", checkpoint.kind)
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
    if get_method(method_name).main_attention != NATIVE_ATTENTION[kind]:
        return f"it runs a {kind} checkpoint with its native attention only"
    if isinstance(encoder, PairEncoder):
        return _pair_refusal_reason(encoder, sources)
    if peer != "lm-eval":
        return "" if sources.adapter is None else "it cannot open a PEFT adapter"
    if not _starts_with_bos_or_eos(encoder.tokenizer, encoder.specials.before):
        return "it always puts a BOS or EOS before a text, which --bos excludes here"
    cuts_vocabulary = encoder.vocab_size != len(encoder.tokenizer)
    if sources.adapter not in (None, sources.base) and cuts_vocabulary:
        sizes = f"{len(encoder.tokenizer)} of {encoder.vocab_size} tokens"
        return f"with an adapter it cuts the vocabulary to the tokenizer's {sizes}"
    return ""


def _pair_refusal_reason(encoder: PairEncoder, sources: CheckpointSources) -> str:
    """Return why lm-eval cannot score an encoder-decoder; "" if it can.

    lm-eval 0.4.13 gives the tokens of an option to the model as labels, without specials.
    """
    if sources.adapter is not None:
        return "an encoder-decoder with an adapter is not compared"
    if len(encoder.specials.before) > 1:
        added = encoder.tokenizer.convert_ids_to_tokens(encoder.specials.before[1:])
        return f"its decoder does not read {' '.join(map(str, added))} before a text"
    config = read_json(sources.base / "config.json") or {}
    if config.get("decoder_start_token_id") != encoder.start_id:
        return "its decoder begins with the last token of the option instead of a start token"
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


@dataclass(frozen=True, slots=True)
class SuiteSample:
    """Items of a suite that fit the model, with our predictions."""

    suite: str
    method: Method
    items: list[Item]
    predictions: Predictions
    """Of our engine."""
    left_out: int
    """Number of sampled items that do not fit the model."""

    @property
    def options(self) -> list[Option]:
        """The options, item after item."""
        return [option for item in self.items for option in item.options]

    @property
    def texts(self) -> list[str]:
        """The text of every option, item after item."""
        return [option.text for item in self.items for option in item.options]

    @property
    def spans(self) -> list[tuple[int, int] | None]:
        """The scored span of every option; None = the whole text."""
        return [option.span for item in self.items for option in item.options]

    @property
    def option_slices(self) -> list[slice]:
        """Per item, its options among those of all items."""
        bounds = np.cumsum([0, *(len(item.options) for item in self.items)]).tolist()
        return [slice(start, end) for start, end in pairwise(bounds)]

    def worst_item(self, gaps: Floats) -> str:
        """Return the id of the item that has the option with the largest gap."""
        largest = [float(gaps[options].max()) for options in self.option_slices]
        return self.items[int(np.argmax(largest))].id


def _compare_suite(
    checkpoint: Checkpoint,
    suite: str,
    items: Sequence[Item],
    peers: dict[tuple[str, str], Peer],
    tolerance: float,
    progress: Progress,
) -> list[PeerAgreement]:
    """Compare our scores of some items with those of each peer.

    peers: (peer, method) -> the opened peer. Raises DataError, CheckpointError.
    """
    agreements = []
    # A peer scores a sample in one call, which reports no progress.
    work = {pair: estimate_work(items, [get_method(pair[1])]) for pair in peers}
    progress.plan(Workload.sum(work.values()))
    for name in dict.fromkeys(method for _, method in peers):
        sample = _score_sample(checkpoint, suite, items, resolve_method(name, checkpoint))
        for (peer_name, peer_method), peer in peers.items():
            if peer_method == name:
                label = f"{checkpoint.name} {suite} {name} {peer_name}"
                progress.start_piece(label, work[peer_name, name])
                agreements.append(
                    _compare_with_peer(checkpoint, peer_name, peer, sample, tolerance)
                )
                progress.advance(len(items))
    return agreements


def _sample_items(suite: Suite, limit: int) -> list[Item]:
    """Return `limit` items of a suite. Raises UsageError for one that peers cannot score."""
    task_type = TASK_TYPES[suite.task_type]
    if not task_type.supports_other_engines:
        raise UsageError(
            f"{suite.name} scores {task_type.scored_noun}, which peers do not compute",
            location="--suite",
            hint="give a suite of pairs",
        )
    return sample_evenly(suite.items, limit)


def sample_evenly(items: Sequence[Item], limit: int) -> list[Item]:
    """Return `limit` evenly spaced items, so that each paradigm has its share of the sample."""
    sample_size = min(limit, len(items))
    return [items[i * len(items) // sample_size] for i in range(sample_size)]


def _score_sample(
    checkpoint: Checkpoint, suite: str, items: Sequence[Item], method: Method
) -> SuiteSample:
    """Score items with our engine. Raises DataError if none fits the model."""
    [predictions] = multiple_choice.predict(checkpoint, items, [method])
    fitting = np.flatnonzero(~predictions.has_flag("too-long"))
    if not len(fitting):
        message = f"none of {format_count(len(items), 'item')} fits the model"
        raise DataError(message, location=suite, hint=TOO_LONG_HINT)
    return SuiteSample(
        suite=suite,
        method=method,
        items=[items[index] for index in fitting.tolist()],
        predictions=predictions.take(fitting),
        left_out=len(items) - len(fitting),
    )


def _compare_with_peer(
    checkpoint: Checkpoint, peer_name: str, peer: Peer, sample: SuiteSample, tolerance: float
) -> PeerAgreement:
    texts, spans, ours = sample.texts, sample.spans, sample.predictions
    if isinstance(peer, LmEvalScorer):
        encodings = multiple_choice.encode_options(
            checkpoint, sample.options, sample.method.main_attention
        )
        our_tokens = _scored_tokens(encodings, len(texts))
        their_scores = peer.score_tokens(our_tokens)
        other_tokens = _compare_own_tokens(peer, our_tokens, sample)
    else:
        their_scores = peer.scores(texts, spans, sample.method.name)
        other_tokens = OtherTokens(0)
    gaps = np.abs(their_scores - ours.flat("scores"))
    if not np.isfinite(gaps).all():
        message = f"{peer_name} returns scores that are not finite"
        raise CheckpointError(message, location=f"{sample.suite} · {sample.method.name}")
    flips = (
        _find_flip(item_id, our_scores, their_scores[options], tolerance)
        for item_id, our_scores, options in zip(
            ours.ids, ours.iter_options("scores"), sample.option_slices, strict=True
        )
    )
    aligned, apart = _alignment_notes(peer, spans)
    return PeerAgreement(
        peer=peer_version(peer_name),
        suite=sample.suite,
        method=sample.method.name,
        items=len(sample.items),
        options=len(their_scores),
        largest=float(gaps.max()),
        worst=sample.worst_item(gaps),
        mean=float(gaps.mean()),
        flips=tuple(flip for flip in flips if flip),
        aligned=aligned,
        apart=apart,
        left_out=sample.left_out,
        other_tokens=other_tokens,
    )


def _scored_tokens(encodings: Encodings, num_texts: int) -> list[TokenRequest]:
    """Return what our engine reads and scores of each text, up to its last scored token."""
    requests = [TokenRequest([], [])] * num_texts
    for encoded in encodings.batches:
        rows = zip(encoded.ids, encoded.score_mask, encoded.text_index.tolist(), strict=True)
        for row, (ids, is_scored, text_index) in enumerate(rows):
            positions = np.flatnonzero(is_scored).tolist()
            first, end = positions[0], positions[-1] + 1
            context = ids[:first] if encoded.source_ids is None else encoded.source_ids[row]
            requests[text_index] = TokenRequest(context.tolist(), ids[first:end].tolist())
    return requests


def _compare_own_tokens(
    peer: LmEvalScorer, our_tokens: Sequence[TokenRequest], sample: SuiteSample
) -> OtherTokens:
    """Compare our scores with lm-eval's scores of its own tokens, where these are not ours."""
    their_tokens = peer.tokenize(sample.texts, sample.spans)
    num_items_by_reason: Counter[str] = Counter()
    num_items, scorable = 0, []
    for options in sample.option_slices:
        pairs = list(zip(our_tokens[options], their_tokens[options], strict=True))
        reasons = {_describe_tokens(*pair, peer) for pair in pairs if pair[0] != pair[1]}
        num_items_by_reason.update(reasons)
        num_items += bool(reasons)
        if reasons and all(theirs.option for _, theirs in pairs):
            scorable.append(options)
    other_tokens = OtherTokens(num_items, tuple(num_items_by_reason.most_common()))
    if not scorable:
        return other_tokens
    ours = sample.predictions.flat("scores")
    theirs = ours.copy()
    indices = np.concatenate([np.r_[options] for options in scorable])
    theirs[indices] = peer.score_tokens([their_tokens[index] for index in indices])
    gaps = np.abs(theirs - ours)
    return replace(
        other_tokens,
        largest=float(gaps.max()),
        worst=sample.worst_item(gaps),
        other_preference=sum(
            int(ours[options].argmax() != theirs[options].argmax()) for options in scorable
        ),
    )


def _describe_tokens(ours: TokenRequest, theirs: TokenRequest, peer: LmEvalScorer) -> str:
    """Return what lm-eval does differently with a text."""
    if not theirs.option:
        return "it leaves no token to the option and cannot score it"
    if ours.context + ours.option != theirs.context + theirs.option:
        return "it reads other tokens"
    added_tokens = theirs.option[: len(theirs.option) - len(ours.option)]
    if len(theirs.option) > len(ours.option) and not peer.decode(added_tokens).strip():
        return "it scores the space before an option as a token of the option"
    return "it starts an option after as many tokens as the context has alone"


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
        if peer.reads_sources:
            return ("sums of log-probabilities", "the tokens of every source and option"), ()
        aligned = ["sums of log-probabilities", "one BOS or EOS before every text"]
        if has_contexts:
            aligned.append("a BOS before contexts, written into the text")
        return tuple(aligned), ()
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
