"""What `verify` finds: our scores beside those of other implementations."""

from __future__ import annotations

from dataclasses import dataclass

from antlm_bench.errors import EngineDisagreement


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
