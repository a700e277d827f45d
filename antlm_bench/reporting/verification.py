"""What `verify` found, drawn: a row per peer, then each flipped decision, then the conventions that
were compared.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from antlm_bench.reporting.terminal import print_fields, print_rows
from antlm_bench.results.verification import PeerAgreement, Verification

VerificationRow = dict[str, object]


def show_verification(verification: Verification, output_format: str = "terminal") -> None:
    """Print it on stdout. form: terminal, markdown, csv (the rows alone), json (everything, in full
    precision).
    """
    if output_format == "json":
        document = asdict(verification)
        for made, agreement in zip(document["agreements"], verification.agreements, strict=True):
            made["holds"] = agreement.is_within(verification.tolerance)
        sys.stdout.write(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        return
    rows = [
        _agreement_row(agreement, verification, exact=output_format == "csv")
        for agreement in verification.agreements
    ]
    wide = (
        () if output_format != "terminal" else ("scores", "at item")
    )  # the error names the worst item where it matters
    print_rows(
        [{head: value for head, value in row.items() if head not in wide} for row in rows],
        output_format,
    )
    if output_format == "csv":
        return
    if flips := [row for agreement in verification.agreements for row in _flip_rows(agreement)]:
        sys.stdout.write("\n")
        print_rows(flips, output_format)
    sys.stdout.write("\n")
    if output_format == "markdown":
        lines = [
            f"- {title}: {'; '.join(said)}" for title, said in _conventions_by_peer(verification)
        ]
        sys.stdout.write("\n".join(lines) + "\n")
    else:
        print_fields(
            f"compared within {verification.tolerance:g} nats",
            {title: "\n".join(said) for title, said in _conventions_by_peer(verification)},
        )


def _agreement_row(
    agreement: PeerAgreement, verification: Verification, exact: bool
) -> VerificationRow:
    largest, mean = agreement.largest, agreement.mean
    real = sum(not flip.tie for flip in agreement.flips)
    return {
        "peer": agreement.peer,
        "suite": agreement.suite,
        "method": agreement.method,
        "items": agreement.items,
        "scores": agreement.options,
        "largest (nats)": largest if exact else f"{largest:.1e}",
        "mean (nats)": mean if exact else f"{mean:.1e}",
        "at item": agreement.worst,
        "flipped": real,
        "ties": len(agreement.flips) - real,
        "verdict": "agrees" if agreement.is_within(verification.tolerance) else "differs",
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
    """Per peer what was aligned and what was not, and who could not be asked."""
    said: dict[str, dict[str, None]] = {}
    for agreement in verification.agreements:
        mine = said.setdefault(agreement.peer, {})
        mine.update(dict.fromkeys(agreement.aligned))
        mine.update(dict.fromkeys(f"not aligned: {line}" for line in agreement.apart))
    for peer, method, why in verification.refused:
        said.setdefault(peer, {})[f"not asked about {method}: {why}"] = None
    return [(title, list(lines)) for title, lines in said.items()]
