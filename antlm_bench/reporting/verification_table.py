"""Build the table of `verify`: a row per peer, then the flipped items, then the conventions."""

from __future__ import annotations

from dataclasses import asdict, replace

from antlm_bench.printable import format_count
from antlm_bench.reporting.table import (
    Table,
    TableCell,
    build_facts_table,
    build_records_table,
)
from antlm_bench.results.verification import PeerAgreement, Verification

VerificationRow = dict[str, object]
"""Column -> value."""


def build_verification_table(verification: Verification) -> Table:
    """Build the table of agreements, with flipped items and conventions as its parts."""
    tolerance = verification.tolerance
    rows = [_agreement_row(agreement, tolerance) for agreement in verification.agreements]
    flips = [row for agreement in verification.agreements for row in _flip_rows(agreement)]
    conventions = {peer: "\n".join(lines) for peer, lines in _conventions_by_peer(verification)}
    document = asdict(verification)
    for record, agreement in zip(document["agreements"], verification.agreements, strict=True):
        record["holds"] = agreement.is_within(tolerance)
    full_table = build_records_table(rows)
    keys = [column.key for column in full_table.columns]
    if not any(agreement.other_tokens.items for agreement in verification.agreements):
        keys.remove("tokens differ")
    return replace(
        build_records_table(rows, keys=keys),
        build_long=lambda: full_table,
        parts=(
            *([build_records_table(flips)] if flips else []),
            build_facts_table(f"scores agree within {tolerance:g} nats", conventions),
        ),
        document=document,
    )


def _agreement_row(agreement: PeerAgreement, tolerance: float) -> VerificationRow:
    num_flips = sum(not flip.tie for flip in agreement.flips)
    agrees = agreement.is_within(tolerance)
    return {
        "peer": agreement.peer,
        "suite": agreement.suite,
        "method": agreement.method,
        "items": agreement.items,
        "tokens differ": agreement.other_tokens.items,
        "scores": agreement.options,
        "largest (nats)": TableCell(agreement.largest, f"{agreement.largest:.1e}", unit="nats"),
        "mean (nats)": TableCell(agreement.mean, f"{agreement.mean:.1e}", unit="nats"),
        "at item": agreement.worst,
        "flipped": num_flips,
        "ties": len(agreement.flips) - num_flips,
        "verdict": TableCell("agrees") if agrees else TableCell("differs", tone="bad"),
    }


def _flip_rows(agreement: PeerAgreement) -> list[VerificationRow]:
    return [
        {
            "flipped item": flip.id,
            "suite": agreement.suite,
            "method": agreement.method,
            "we prefer": f"{flip.ours + 1} by {flip.margin:.2e}",
            "peer": agreement.peer,
            "it prefers": f"{flip.theirs + 1} by {flip.their_margin:.2e}",
            "within tolerance": flip.tie,
        }
        for flip in agreement.flips
    ]


def _conventions_by_peer(verification: Verification) -> list[tuple[str, list[str]]]:
    """Return (peer, lines): conventions that were aligned, that were not, and refused methods."""
    lines_by_peer: dict[str, dict[str, None]] = {}
    for agreement in verification.agreements:
        lines = lines_by_peer.setdefault(agreement.peer, {})
        lines.update(dict.fromkeys(agreement.aligned))
        lines.update(dict.fromkeys(f"not aligned: {line}" for line in agreement.apart))
        lines.update(dict.fromkeys(_item_lines(agreement)))
    for peer, method, reason in verification.refused:
        lines_by_peer.setdefault(peer, {})[f"not compared by {method}: {reason}"] = None
    return [(peer, list(lines)) for peer, lines in lines_by_peer.items()]


def _item_lines(agreement: PeerAgreement) -> list[str]:
    """Return sentences on items that were left out, and on those that the peer tokenises
    differently.
    """
    suite, num_items, other = agreement.suite, agreement.items, agreement.other_tokens
    lines = []
    if agreement.left_out:
        num_sampled = num_items + agreement.left_out
        lines.append(
            f"{suite}: {agreement.left_out} of {num_sampled} items do not fit the model and are "
            "left out"
        )
    if other.items:
        reasons = "; ".join(
            reason if count == other.items else f"{reason} ({count})"
            for reason, count in other.reasons
        )
        lines.append(
            f"{suite}: {other.items} of {num_items} items are tokenised differently ({reasons}); "
            "above, they are scored on our tokens"
        )
    if other.largest is not None:
        line = (
            f"{suite}: on its own tokens, their scores differ by up to {other.largest:.3g} nats "
            f"(item {other.worst})"
        )
        if agreement.options > num_items:
            line += (
                f", and it prefers another option in {format_count(other.other_preference, 'item')}"
            )
        lines.append(line)
    return lines
