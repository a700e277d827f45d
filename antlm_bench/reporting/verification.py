"""What `verify` found, drawn: a row per peer, then each flipped decision, then the conventions that were compared."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from antlm_bench.commands.verify import Agreement, Verification
from antlm_bench.reporting.terminal import catalog, facts

Row = dict[str, object]


def show_verification(found: Verification, form: str = "terminal") -> None:
    """Print it on stdout. form: terminal, markdown, csv (the rows alone), json (everything, in full precision)."""
    if form == "json":
        document = asdict(found)
        for made, agreement in zip(document["agreements"], found.agreements, strict=True):
            made["holds"] = agreement.holds(found.tolerance)
        sys.stdout.write(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        return
    rows = [_row(agreement, found, exact=form == "csv") for agreement in found.agreements]
    wide = () if form != "terminal" else ("scores", "at item")  # the error names the worst item where it matters
    catalog([{head: value for head, value in row.items() if head not in wide} for row in rows], form)
    if form == "csv":
        return
    if flips := [row for agreement in found.agreements for row in _flips(agreement)]:
        sys.stdout.write("\n")
        catalog(flips, form)
    sys.stdout.write("\n")
    if form == "markdown":
        lines = [f"- {title}: {'; '.join(said)}" for title, said in _conventions(found)]
        sys.stdout.write("\n".join(lines) + "\n")
    else:
        facts(
            f"compared within {found.tolerance:g} nats", {title: "\n".join(said) for title, said in _conventions(found)}
        )


def _row(agreement: Agreement, found: Verification, exact: bool) -> Row:
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
        "verdict": "agrees" if agreement.holds(found.tolerance) else "differs",
    }


def _flips(agreement: Agreement) -> list[Row]:
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


def _conventions(found: Verification) -> list[tuple[str, list[str]]]:
    """Per peer what was aligned and what was not, and who could not be asked."""
    said: dict[str, dict[str, None]] = {}
    for agreement in found.agreements:
        mine = said.setdefault(agreement.peer, {})
        mine.update(dict.fromkeys(agreement.aligned))
        mine.update(dict.fromkeys(f"not aligned: {line}" for line in agreement.apart))
    for peer, method, why in found.refused:
        said.setdefault(peer, {})[f"not asked about {method}: {why}"] = None
    return [(title, list(lines)) for title, lines in said.items()]
