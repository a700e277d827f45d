"""verify: a sample of a suite through our engine and through the peers, and every number on which they differ.

The peers load the same folder by themselves, in fp32 on the CPU. What can be aligned is (sums, the BOS of `--bos`, the
characters that count), and what could not be is said beside the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from antlm_bench.checkpoints import Checkpoint, OpenOptions, conversion, open_checkpoint
from antlm_bench.checkpoints.resolve import Sources, locate_sources
from antlm_bench.commands.cells import Names, listed
from antlm_bench.commands.task_types import kind_of
from antlm_bench.errors import CheckpointError, DataError, Disagreement, MethodNotSupported, UsageError
from antlm_bench.reporting.progress import Progress
from antlm_bench.scoring import multiple_choice
from antlm_bench.scoring.peers import (
    PEERS,
    Kind,
    LmEvalReader,
    MiniconsReader,
    open_lm_eval,
    open_minicons,
    peer_version,
)
from antlm_bench.scoring.probes import default_method, known, method
from antlm_bench.scoring.text import Encoder, Specials, template
from antlm_bench.suites import loader as suites
from antlm_bench.suites.loader import Suite
from antlm_bench.suites.pairs_csv import columns_of
from antlm_bench.types import Attention, Floats, Item, Prediction

TOLERANCE = 1e-3  # nats; peers agree to 3e-5 where the inputs are the same (batches of other shapes round differently)
Peer = MiniconsReader | LmEvalReader


@dataclass(frozen=True, slots=True)
class Flip:
    """An item on which a peer prefers another option, and by how many nats each side prefers its own to the other's.

    ours, theirs: indices of the options. tie: neither margin exceeds twice the tolerance, so that two scores within
    the tolerance can explain it.
    """

    id: str
    ours: int
    theirs: int
    margin: float
    their_margin: float
    tie: bool


@dataclass(frozen=True, slots=True)
class Agreement:
    """One suite and method beside one peer: n items with `options` scores in all.

    largest: the largest absolute difference of an option's score in nats, at item `worst`. mean: the mean absolute
    difference. aligned: the conventions that both followed. apart: what could not be aligned, or asked.
    """

    peer: str
    suite: str
    method: str
    items: int
    options: int
    largest: float
    worst: str
    mean: float
    flips: tuple[Flip, ...]
    aligned: tuple[str, ...]
    apart: tuple[str, ...]

    def holds(self, tolerance: float) -> bool:
        return self.largest <= tolerance and all(flip.tie for flip in self.flips)


@dataclass(frozen=True, slots=True)
class Verification:
    """What came out for one checkpoint. refused: (peer, method, why it could not be asked)."""

    model: str
    tolerance: float
    agreements: tuple[Agreement, ...]
    refused: tuple[tuple[str, str, str], ...]

    def check(self) -> None:
        """Raise Disagreement if a peer says something else."""
        bad = [a for a in self.agreements if not a.holds(self.tolerance)]
        if not bad:
            return
        said = [
            f"{a.suite} · {a.method}: {a.peer} differs by up to {a.largest:.3g} nats (item {a.worst}), and decides "
            f"{sum(not flip.tie for flip in a.flips)} of {a.items} items otherwise"
            for a in bad
        ]
        raise Disagreement(
            f"our scores are not the peers' within {self.tolerance:g} nats:\n"
            + "\n".join(f"  {line}" for line in said),
            place=self.model,
            hint="see what could not be aligned above; if nothing explains it, report it with this command",
        )


def verify(
    model: str | Path,
    suite: Names,
    *,
    limit: int = 100,
    methods: Names = (),
    columns: Mapping[str, str] | None = None,
    tolerance: float = TOLERANCE,
    options: OpenOptions | None = None,
) -> Verification:
    """Score `limit` items of every suite, evenly spaced over it, with our engine and with every peer that can.

    methods: out of causal, mlm, mlm-l2r; () = the checkpoint's first. columns: of files of pairs, ours -> theirs.
    options: how ours is opened (revision, bos, max_length, allow_pickle, trust_remote_code); it runs in fp32 on the
    CPU, as the peers do, who run the checkpoint's own Python too if they may. Raises UsageError, MethodNotSupported (no
    peer scores that way; before any data is loaded), DataError, CheckpointError. Disagreement is a result: see
    Verification.check.
    """
    if not tolerance > 0:
        raise UsageError(f"{tolerance:g} is no number of nats above 0", place="--tolerance")
    if limit < 1:
        raise UsageError(f"limit is {limit}; it must be 1 or more", place="--limit")
    for name in listed(methods):
        _peers(name)
    options = options or OpenOptions(device="cpu")
    checkpoint = open_checkpoint(str(model), options)
    names = list(dict.fromkeys(listed(methods) or [default_method(checkpoint, checkpoint.methods)]))
    for name in names:
        method(name, checkpoint)
    sources = locate_sources(str(model), options)
    if conversion.recognise(sources.base, options) is not None:
        # Transformers would take its "model_type": "bert" at its word, and leave most weights random.
        raise MethodNotSupported(
            f"{checkpoint.name} is saved in its authors' own layout, which no peer can load",
            place="--model",
            hint="only our engine converts it: there is nothing to compare ours with",
        )
    opened, refused = _opened(checkpoint, sources, names, options)
    if not opened:
        reasons = "".join(f"\n  {peer}, {name}: {why}" for peer, name, why in refused)
        raise MethodNotSupported(f"no peer can score {checkpoint.name} this way:{reasons}", place="--model")
    refs = list(dict.fromkeys(member for each in listed(suite) for member in suites.members(each)))
    found: list[Agreement] = []
    for ref in refs:  # a sample is never the whole
        loaded = suites.load(ref, allow_incomplete=True, columns=columns_of(ref, refs, columns))
        checkpoint.test_on([o.text for item in loaded.items for o in item.options], [known(name) for name in names])
        found += _suite(checkpoint, loaded, limit, names, opened, tolerance)
    return Verification(checkpoint.name, tolerance, tuple(found), tuple(refused))


def _peers(name: str) -> list[str]:
    """The peers that know a method. MethodNotSupported where there is none, UsageError for an unknown name."""
    known(name)
    peers = [peer for peer, names in PEERS.items() if name in names]
    if not peers:
        raise MethodNotSupported(
            f"no peer scores with {name!r}: there is nothing to compare ours with",
            place="--method",
            hint=f"one of {', '.join(dict.fromkeys(n for names in PEERS.values() for n in names))}",
        )
    return peers


def _opened(
    checkpoint: Checkpoint, sources: Sources, names: Sequence[str], options: OpenOptions
) -> tuple[dict[tuple[str, str], Peer], list[tuple[str, str, str]]]:
    """(peer, method) -> the peer, opened once; and who could not be asked, and why."""
    opened: dict[str, Peer] = {}
    pairs: dict[tuple[str, str], Peer] = {}
    refused = []
    kind: Kind = "causal" if checkpoint.kind == "causal" else "masked"
    for name, peer in [(each, peer) for each in names for peer in _peers(each)]:
        attention: Attention = "causal" if name == "causal" else "full"
        own = "causal" if kind == "causal" else "full"
        encoder = checkpoint.encoders[attention]
        if attention != own:
            refused.append((peer, name, f"it runs a {kind} checkpoint with its own attention only"))
        elif peer == "lm-eval" and not _prefixed(encoder.tokenizer, encoder.around.before):
            refused.append((peer, name, "it always reads one BOS or EOS before a text, which --bos does not want here"))
        elif (
            peer == "lm-eval"
            and sources.adapter not in (None, sources.base)
            and encoder.vocabulary != len(encoder.tokenizer)
        ):
            cut = f"{len(encoder.tokenizer)} of {encoder.vocabulary} tokens"
            refused.append((peer, name, f"with an adapter it cuts the vocabulary to the tokenizer's {cut}"))
        elif peer != "lm-eval" and sources.adapter is not None:
            refused.append((peer, name, "it cannot open a PEFT adapter"))
        else:
            try:
                opened[peer] = opened.get(peer) or _open_peer(peer, sources, kind, encoder, options)
                pairs[peer, name] = opened[peer]
            except CheckpointError as error:
                refused.append((peer, name, error.message))
    return pairs, refused


def _open_peer(peer: str, sources: Sources, kind: Kind, encoder: Encoder, options: OpenOptions) -> Peer:
    """A peer with the same weights, adapter and tokenizer. Raises CheckpointError."""
    trusted = options.trust_remote_code
    if peer == "lm-eval":
        adapter = sources.adapter if sources.adapter != sources.base else None  # transformers loads one beside weights
        parts = {"peft": adapter, "tokenizer": sources.tokenizer if sources.tokenizer != sources.base else None}
        more = {name: str(path) for name, path in parts.items() if path is not None}
        return open_lm_eval(sources.base, trusted, more)
    own = encoder.tokenizer if trusted or options.tokenizer else None
    return open_minicons(sources.base, kind, encoder.around, encoder.max_length, own, trusted)


def _prefixed(tokenizer: object, before: tuple[int, ...]) -> bool:
    """Whether a row begins as lm-eval's does: with BOS, or EOS where there is none."""
    bos, eos = getattr(tokenizer, "bos_token_id", None), getattr(tokenizer, "eos_token_id", None)
    return before == ((eos if bos is None else bos),)


def _suite(
    checkpoint: Checkpoint,
    loaded: Suite,
    limit: int,
    names: Sequence[str],
    opened: dict[tuple[str, str], Peer],
    tolerance: float,
) -> list[Agreement]:
    if (asks := kind_of(loaded, multiple_choice.Policy()).asks) not in ("choices", "texts"):
        hint = "give a suite of choices"
        raise UsageError(f"{loaded.name} asks for {asks}, not for texts", place="--suite", hint=hint)
    items = spaced(loaded.items, limit)
    found = []
    with Progress(len(opened) * len(items), f"{checkpoint.name} {loaded.name}") as progress:
        for name in names:
            [ours] = multiple_choice.predict(checkpoint, items, [method(name, checkpoint)])
            fits = [n for n, prediction in enumerate(ours) if "too-long" not in prediction.flags]
            if not fits:
                message = f"none of {len(items)} items fits the model"
                raise DataError(message, place=loaded.name, hint="raise --max-length")
            asked, mine = [items[n] for n in fits], [ours[n] for n in fits]
            left = len(items) - len(fits)
            apart = (f"{left} of {len(items)} items do not fit the model, and were left out",) if left else ()
            for (peer, each), reader in opened.items():
                if each == name:
                    agreement = _beside(peer, reader, loaded.name, name, asked, mine, tolerance)
                    found.append(replace(agreement, apart=apart + agreement.apart))
                    progress.advance(len(items))
    return found


def spaced(items: Sequence[Item], limit: int) -> list[Item]:
    """`limit` items evenly spaced over a suite: paradigms stand one after the other, so each gets its share."""
    n = min(limit, len(items))
    return [items[i * len(items) // n] for i in range(n)]


def _beside(
    peer: str, reader: Peer, suite: str, name: str, items: Sequence[Item], ours: Sequence[Prediction], tolerance: float
) -> Agreement:
    texts = [option.text for item in items for option in item.options]
    spans = [option.span for item in items for option in item.options]
    flat = reader.scores(texts, spans, name)
    borders = np.cumsum([0, *(len(item.options) for item in items)])
    theirs = [flat[start:end] for start, end in pairwise(borders)]
    off = np.abs(flat - np.array([score for prediction in ours for score in prediction.scores]))
    if not np.isfinite(off).all():
        raise CheckpointError(f"{peer} gives scores that are not finite", place=f"{suite} · {name}")
    worst = int(np.searchsorted(borders, int(off.argmax()), side="right")) - 1
    aligned, apart = _conventions(reader, spans)
    return Agreement(
        peer=peer_version(peer),
        suite=suite,
        method=name,
        items=len(items),
        options=len(flat),
        largest=float(off.max()),
        worst=items[worst].id,
        mean=float(off.mean()),
        flips=tuple(flip for p, q in zip(ours, theirs, strict=True) if (flip := _flip(p, q, tolerance))),
        aligned=aligned,
        apart=apart,
    )


def _flip(prediction: Prediction, theirs: Floats, tolerance: float) -> Flip | None:
    mine, other = prediction.pred, int(theirs.argmax())
    if mine == other:
        return None
    margin = prediction.scores[mine] - prediction.scores[other]
    their_margin = float(theirs[other] - theirs[mine])
    return Flip(prediction.id, mine, other, margin, their_margin, max(margin, their_margin) <= 2 * tolerance)


def _conventions(reader: Peer, spans: Sequence[tuple[int, int] | None]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What was made alike for the comparison, and what the peer does in its own way."""
    aligned, apart = ["sums of log-probabilities"], []
    contexts = any(span is not None and span[0] for span in spans)
    if isinstance(reader, MiniconsReader):
        aligned[0] += " (its default is the mean)"
        own = "spelled into the text" if reader.around != Specials() else "none"
        aligned.append(f"special tokens: {own if reader.spelled else 'what the tokenizer adds'}")
        if reader.kind == "causal" and not reader.spelled and template(reader.scorer.tokenizer).after:
            apart.append("it scores the special tokens that the tokenizer adds after a text: as --compat minicons")
        if contexts:
            aligned.append("the same characters count: its scores per token, added up (not its conditional_score)")
    else:
        aligned.append("one BOS or EOS before every text")
        if contexts:
            aligned.append("a BOS before contexts: spelled")
            apart.append("context and option are told apart by counting the context's own tokens, not by characters")
    return tuple(aligned), tuple(apart)
