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
    """By how much our engine prefers its option to the peer's (nats)."""
    their_margin: float
    """By how much the peer prefers its option to ours (nats)."""
    tie: bool
    """Neither margin exceeds twice the tolerance: two scores within the tolerance explain it."""


@dataclass(frozen=True, slots=True)
class PeerAgreement:
    """The scores of one suite under one method beside those of one peer."""

    peer: str
    suite: str
    method: str
    items: int
    options: int
    """Number of options of all items; each has a score."""
    largest: float
    """Largest absolute difference of an option's score (nats)."""
    worst: str
    """Id of the item with the largest difference."""
    mean: float
    """Mean absolute difference of the options' scores (nats)."""
    flips: tuple[PeerFlip, ...]
    aligned: tuple[str, ...]
    """Conventions that both sides followed."""
    apart: tuple[str, ...]
    """What could not be aligned or computed."""

    def is_within(self, tolerance: float) -> bool:
        """Whether all scores agree within `tolerance` (nats), and all flips are ties."""
        return self.largest <= tolerance and all(flip.tie for flip in self.flips)


@dataclass(frozen=True, slots=True)
class Verification:
    """The agreement of one checkpoint's scores with every peer that can compute them."""

    model: str
    tolerance: float
    agreements: tuple[PeerAgreement, ...]
    refused: tuple[tuple[str, str, str], ...]
    """(peer, method, reason) of what a peer cannot compute."""

    def raise_on_disagreement(self) -> None:
        """Raise EngineDisagreement if a peer's scores differ by more than the tolerance."""
        lines = [
            f"  {agreement.suite} · {agreement.method}: {agreement.peer} differs by up to "
            f"{agreement.largest:.3g} nats (item {agreement.worst}), and decides "
            f"{sum(not flip.tie for flip in agreement.flips)} of {agreement.items} items otherwise"
            for agreement in self.agreements
            if not agreement.is_within(self.tolerance)
        ]
        if lines:
            raise EngineDisagreement(
                f"our scores are not the peers' within {self.tolerance:g} nats:\n"
                + "\n".join(lines),
                location=self.model,
                hint="see what could not be aligned above; if nothing explains it, report it with"
                " this command",
            )
