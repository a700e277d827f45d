"""The result of `verify`: our scores of a sample of items beside those of other tools (peers)."""

from __future__ import annotations

from dataclasses import dataclass

from antlm_bench.errors import EngineDisagreement


@dataclass(frozen=True, slots=True)
class PeerFlip:
    """An item on which a peer prefers another option than our engine."""

    id: str
    ours: int
    """Index of the option that our engine prefers."""
    theirs: int
    """Index of the option that the peer prefers."""
    margin: float
    """log P(its option) - log P(the peer's option) by our engine, in nats."""
    their_margin: float
    """log P(its option) - log P(our option) by the peer, in nats."""
    tie: bool
    """Whether differences of scores within the tolerance explain the flip: neither margin exceeds
    twice the tolerance."""


@dataclass(frozen=True, slots=True)
class OtherTokens:
    """Items that a peer tokenises differently than our engine.

    Their scores in PeerAgreement are those that the peer gives to our tokens. Here stands how far
    the scores of its own tokens are from ours.
    """

    items: int
    """Number of items. 0 = the peer reads and scores the same tokens everywhere."""
    reasons: tuple[tuple[str, int], ...] = ()
    """(what the peer does differently, number of items), the most frequent first."""
    largest: float | None = None
    """Largest absolute difference of the scores of an option (nats); None = the peer can score none
    of these items with its own tokens."""
    worst: str = ""
    """Id of the item with the largest difference."""
    other_preference: int = 0
    """Number of items with several options of which the peer then prefers another one."""


@dataclass(frozen=True, slots=True)
class PeerAgreement:
    """Our scores and a peer's scores of the same tokens of one suite under one method, compared."""

    peer: str
    suite: str
    method: str
    items: int
    """Number of items."""
    options: int
    """Number of options of all items. Each option has a score."""
    largest: float
    """Largest absolute difference between our score and the peer's score of an option (nats)."""
    worst: str
    """Id of the item with the largest difference."""
    mean: float
    """Mean absolute difference over the options (nats)."""
    flips: tuple[PeerFlip, ...]
    aligned: tuple[str, ...]
    """Conventions that were made equal for the comparison."""
    apart: tuple[str, ...]
    """Conventions that still differ."""
    left_out: int = 0
    """Number of sampled items that do not fit the model; not in `items`."""
    other_tokens: OtherTokens = OtherTokens(0)

    def is_within(self, tolerance: float) -> bool:
        """Return whether all scores agree within `tolerance` (nats), and all flips are ties."""
        return self.largest <= tolerance and all(flip.tie for flip in self.flips)


@dataclass(frozen=True, slots=True)
class Verification:
    """Our scores of one checkpoint, compared with those of every peer that supports it."""

    model: str
    tolerance: float
    agreements: tuple[PeerAgreement, ...]
    refused: tuple[tuple[str, str, str], ...]
    """(peer, method, reason) of each method with which a peer cannot score the checkpoint."""

    def raise_on_disagreement(self) -> None:
        """Raise EngineDisagreement if a peer's scores differ by more than the tolerance."""
        lines = [
            _describe_disagreement(agreement)
            for agreement in self.agreements
            if not agreement.is_within(self.tolerance)
        ]
        if lines:
            raise EngineDisagreement(
                f"our scores differ from those of peers by more than {self.tolerance:g} nats:\n"
                + "\n".join(lines),
                location=self.model,
                hint="see above what could not be aligned; if that does not explain it, report this"
                " command",
            )


def _describe_disagreement(agreement: PeerAgreement) -> str:
    text = (
        f"  {agreement.suite} · {agreement.method}: {agreement.peer} differs by up to "
        f"{agreement.largest:.3g} nats (item {agreement.worst})"
    )
    if agreement.options == agreement.items:  # there is nothing to prefer
        return text
    num_flips = sum(not flip.tie for flip in agreement.flips)
    return f"{text}, and prefers another option in {num_flips} of {agreement.items} items"
