"""verify: a sample of a suite through our engine and through the peers, and every number on which
they differ.

The peers load the same folder by themselves, in fp32 on the CPU. What can be aligned is (sums, the
BOS of `--bos`, the characters that count), and what could not be is said beside the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from antlm_bench.checkpoints import Checkpoint, OpenOptions, conversion, open_checkpoint
from antlm_bench.checkpoints.resolve import CheckpointSources, locate_sources
from antlm_bench.commands.cells import Names, as_list
from antlm_bench.errors import (
    CheckpointError,
    DataError,
    EngineDisagreement,
    MethodNotSupported,
    UsageError,
)
from antlm_bench.reporting.progress import Progress
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
from antlm_bench.types import Floats, Item, Prediction

# nats; peers agree to 3e-5 where the inputs are the same (batches of other shapes round
# differently)
DEFAULT_TOLERANCE = 1e-3
Peer = MiniconsScorer | LmEvalScorer


@dataclass(frozen=True, slots=True)
class PeerFlip:
    """An item on which a peer prefers another option, and by how many nats each side prefers its
    own to the other's.

    ours, theirs: indices of the options. tie: neither margin exceeds twice the tolerance, so that
    two scores within the tolerance can explain it.
    """

    id: str
    ours: int
    theirs: int
    margin: float
    their_margin: float
    tie: bool


@dataclass(frozen=True, slots=True)
class PeerAgreement:
    """One suite and method beside one peer: n items with `options` scores in all.

    largest: the largest absolute difference of an option's score in nats, at item `worst`. mean:
    the mean absolute difference. aligned: the conventions that both followed. apart: what could not
    be aligned, or asked.
    """

    peer: str
    suite: str
    method: str
    items: int
    options: int
    largest: float
    worst: str
    mean: float
    flips: tuple[PeerFlip, ...]
    aligned: tuple[str, ...]
    apart: tuple[str, ...]

    def is_within(self, tolerance: float) -> bool:
        return self.largest <= tolerance and all(flip.tie for flip in self.flips)


@dataclass(frozen=True, slots=True)
class Verification:
    """What came out for one checkpoint. refused: (peer, method, why it could not be asked)."""

    model: str
    tolerance: float
    agreements: tuple[PeerAgreement, ...]
    refused: tuple[tuple[str, str, str], ...]

    def raise_on_disagreement(self) -> None:
        """Raise Disagreement if a peer says something else."""
        bad = [a for a in self.agreements if not a.is_within(self.tolerance)]
        if not bad:
            return
        said = [
            f"{a.suite} · {a.method}: {a.peer} differs by up to {a.largest:.3g} nats (item {a.worst}), and decides "
            f"{sum(not flip.tie for flip in a.flips)} of {a.items} items otherwise"
            for a in bad
        ]
        raise EngineDisagreement(
            f"our scores are not the peers' within {self.tolerance:g} nats:\n"
            + "\n".join(f"  {line}" for line in said),
            location=self.model,
            hint="see what could not be aligned above; if nothing explains it, report it with this command",
        )


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
    """Score `limit` items of every suite, evenly spaced over it, with our engine and with every
    peer that can.

    methods: out of causal, mlm, mlm-l2r; () = the checkpoint's first. columns: of files of pairs,
    ours -> theirs. options: how ours is opened (revision, bos, max_length, allow_pickle,
    trust_remote_code); it runs in fp32 on the CPU, as the peers do, who run the checkpoint's own
    Python too if they may. Raises UsageError, MethodNotSupported (no peer scores that way; before
    any data is loaded), DataError, CheckpointError. Disagreement is a result: see
    Verification.check.
    """
    if not tolerance > 0:
        raise UsageError(f"{tolerance:g} is no number of nats above 0", location="--tolerance")
    if limit < 1:
        raise UsageError(f"limit is {limit}; it must be 1 or more", location="--limit")
    for name in as_list(methods):
        _find_peers(name)
    options = options or OpenOptions(device="cpu")
    checkpoint = open_checkpoint(str(model), options)
    names = list(
        dict.fromkeys(as_list(methods) or [default_method(checkpoint, checkpoint.methods)])
    )
    for name in names:
        resolve_method(name, checkpoint)
    sources = locate_sources(str(model), options)
    if conversion.detect_original(sources.base, options) is not None:
        # Transformers would take its "model_type": "bert" at its word, and leave most weights
        # random.
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
    refs = list(
        dict.fromkeys(member for each in as_list(suite) for member in suites.list_suite_refs(each))
    )
    found: list[PeerAgreement] = []
    for ref in refs:  # a sample is never the whole
        loaded = suites.load_suite(
            ref, allow_incomplete=True, columns=columns_for_ref(ref, refs, columns)
        )
        checkpoint.run_self_test(
            [o.text for item in loaded.items for o in item.options],
            [get_method(name) for name in names],
        )
        found += _compare_suite(checkpoint, loaded, limit, names, opened, tolerance)
    return Verification(checkpoint.name, tolerance, tuple(found), tuple(refused))


def _find_peers(method_name: str) -> list[str]:
    """The peers that know a method. MethodNotSupported where there is none, UsageError for an
    unknown name.
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
    """(peer, method) -> the peer, opened once; and who could not be asked, and why."""
    opened: dict[str, Peer] = {}
    pairs: dict[tuple[str, str], Peer] = {}
    refused = []
    kind: ModelKind = "causal" if checkpoint.kind == "causal" else "masked"
    for name, peer in [(each, peer) for each in method_names for peer in _find_peers(each)]:
        attention = get_method(name).main_attention
        own = "causal" if kind == "causal" else "full"
        encoder = checkpoint.encoders[attention]
        if attention != own:
            refused.append((peer, name, f"it runs a {kind} checkpoint with its own attention only"))
        elif peer == "lm-eval" and not _starts_with_bos_or_eos(
            encoder.tokenizer, encoder.specials.before
        ):
            refused.append(
                (
                    peer,
                    name,
                    "it always reads one BOS or EOS before a text, which --bos does not want here",
                )
            )
        elif (
            peer == "lm-eval"
            and sources.adapter not in (None, sources.base)
            and encoder.vocab_size != len(encoder.tokenizer)
        ):
            cut = f"{len(encoder.tokenizer)} of {encoder.vocab_size} tokens"
            refused.append(
                (peer, name, f"with an adapter it cuts the vocabulary to the tokenizer's {cut}")
            )
        elif peer != "lm-eval" and sources.adapter is not None:
            refused.append((peer, name, "it cannot open a PEFT adapter"))
        else:
            try:
                opened[peer] = opened.get(peer) or _open_peer(peer, sources, kind, encoder, options)
                pairs[peer, name] = opened[peer]
            except CheckpointError as error:
                refused.append((peer, name, error.message))
    return pairs, refused


def _open_peer(
    peer_name: str,
    sources: CheckpointSources,
    kind: ModelKind,
    encoder: TextEncoder,
    options: OpenOptions,
) -> Peer:
    """A peer with the same weights, adapter and tokenizer. Raises CheckpointError."""
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
    own = encoder.tokenizer if trusted or options.tokenizer else None
    return open_minicons(sources.base, kind, encoder.specials, encoder.max_length, own, trusted)


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
            f"{suite.name} asks for {task_type.asks_for}, not for texts",
            location="--suite",
            hint="give a suite of choices",
        )
    items = sample_evenly(suite.items, limit)
    found = []
    with Progress(len(peers) * len(items), f"{checkpoint.name} {suite.name}") as progress:
        for name in method_names:
            [ours] = multiple_choice.predict(checkpoint, items, [resolve_method(name, checkpoint)])
            fits = [n for n, prediction in enumerate(ours) if "too-long" not in prediction.flags]
            if not fits:
                message = f"none of {len(items)} items fits the model"
                raise DataError(message, location=suite.name, hint="raise --max-length")
            asked, mine = [items[n] for n in fits], [ours[n] for n in fits]
            left = len(items) - len(fits)
            apart = (
                (f"{left} of {len(items)} items do not fit the model, and were left out",)
                if left
                else ()
            )
            for (peer, each), reader in peers.items():
                if each == name:
                    agreement = _compare_with_peer(
                        peer, reader, suite.name, name, asked, mine, tolerance
                    )
                    found.append(replace(agreement, apart=apart + agreement.apart))
                    progress.advance(len(items))
    return found


def sample_evenly(items: Sequence[Item], limit: int) -> list[Item]:
    """`limit` items evenly spaced over a suite: paradigms stand one after the other, so each gets
    its share.
    """
    n = min(limit, len(items))
    return [items[i * len(items) // n] for i in range(n)]


def _compare_with_peer(
    peer_name: str,
    reader: Peer,
    suite: str,
    method_name: str,
    items: Sequence[Item],
    ours: Sequence[Prediction],
    tolerance: float,
) -> PeerAgreement:
    texts = [option.text for item in items for option in item.options]
    spans = [option.span for item in items for option in item.options]
    flat = reader.scores(texts, spans, method_name)
    borders = np.cumsum([0, *(len(item.options) for item in items)])
    theirs = [flat[start:end] for start, end in pairwise(borders)]
    off = np.abs(flat - np.array([score for prediction in ours for score in prediction.scores]))
    if not np.isfinite(off).all():
        raise CheckpointError(
            f"{peer_name} gives scores that are not finite", location=f"{suite} · {method_name}"
        )
    worst = int(np.searchsorted(borders, int(off.argmax()), side="right")) - 1
    aligned, apart = _alignment_notes(reader, spans)
    return PeerAgreement(
        peer=peer_version(peer_name),
        suite=suite,
        method=method_name,
        items=len(items),
        options=len(flat),
        largest=float(off.max()),
        worst=items[worst].id,
        mean=float(off.mean()),
        flips=tuple(
            flip for p, q in zip(ours, theirs, strict=True) if (flip := _find_flip(p, q, tolerance))
        ),
        aligned=aligned,
        apart=apart,
    )


def _find_flip(prediction: Prediction, theirs: Floats, tolerance: float) -> PeerFlip | None:
    mine, other = prediction.pred, int(theirs.argmax())
    if mine == other:
        return None
    margin = prediction.scores[mine] - prediction.scores[other]
    their_margin = float(theirs[other] - theirs[mine])
    return PeerFlip(
        prediction.id, mine, other, margin, their_margin, max(margin, their_margin) <= 2 * tolerance
    )


def _alignment_notes(
    peer: Peer, spans: Sequence[tuple[int, int] | None]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What was made alike for the comparison, and what the peer does in its own way."""
    aligned, apart = ["sums of log-probabilities"], []
    contexts = any(span is not None and span[0] for span in spans)
    if isinstance(peer, MiniconsScorer):
        aligned[0] += " (its default is the mean)"
        own = "spelled into the text" if peer.specials != Specials() else "none"
        aligned.append(
            f"special tokens: {own if peer.spells_specials else 'what the tokenizer adds'}"
        )
        if (
            peer.kind == "causal"
            and not peer.spells_specials
            and detect_template(peer.scorer.tokenizer).after
        ):
            apart.append(
                "it scores the special tokens that the tokenizer adds after a text: as --compat minicons"
            )
        if contexts:
            aligned.append(
                "the same characters count: its scores per token, added up (not its conditional_score)"
            )
    else:
        aligned.append("one BOS or EOS before every text")
        if contexts:
            aligned.append("a BOS before contexts: spelled")
            apart.append(
                "context and option are told apart by counting the context's own tokens, not by characters"
            )
    return tuple(aligned), tuple(apart)
