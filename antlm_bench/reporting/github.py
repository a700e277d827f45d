"""A gate's verdict for GitHub Actions: annotations by workflow commands, and the job's summary page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from antlm_bench.errors import UsageError
from antlm_bench.reporting.check import sentence
from antlm_bench.reporting.results_table import printable

if TYPE_CHECKING:
    from antlm_bench.commands.check import Checked

SHOWN = 10  # annotations of one kind and step that GitHub shows; it drops the others silently
SUMMARY = 1024 * 1024  # bytes that a step's summary may have, else none of it is shown


def workflow_commands(checked: Checked) -> str:
    """Workflow commands, one per line: regressions and missing cells as errors, inconclusive suites as warnings."""
    errors = [("regression", sentence(v)) for v in checked.verdicts if v.status == "regression"]
    errors += [("incomplete", f"the run lacks {printable(cell)}") for cell in checked.missing]
    warnings = [("inconclusive", sentence(v)) for v in checked.verdicts if v.status == "inconclusive"]
    warnings += [
        ("drop", sentence(v)) for v in checked.verdicts if v.status == "pass" and (v.culprits or v.headline.dropped)
    ]
    lines = [*_commands("error", errors), *_commands("warning", warnings)]
    return "".join(f"{line}\n" for line in lines)


def _commands(kind: str, found: list[tuple[str, str]]) -> list[str]:
    if len(found) > SHOWN:
        rest = [said for _, said in found[SHOWN - 1 :]]
        found = [*found[: SHOWN - 1], (f"{len(rest)} more", "\n".join(rest))]
    return [f"::{kind} title={in_property(f'antlm-bench: {title}')}::{in_message(said)}" for title, said in found]


def in_message(text: str) -> str:
    """Escaped as the toolkit does: https://github.com/actions/toolkit, packages/core/src/command.ts."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def in_property(text: str) -> str:
    return in_message(text).replace(":", "%3A").replace(",", "%2C")


def append_summary(place: str | Path, text: str) -> None:
    """Add Markdown to the step's summary, cut at a line where it would grow beyond what GitHub shows.

    Raises UsageError where the file cannot be written.
    """
    path = Path(place)
    note = "\n\n_(cut: a summary holds 1 MiB)_\n"
    try:
        there = path.stat().st_size if path.exists() else 0
        room = SUMMARY - there - len(note.encode())
        if len(text.encode()) > room:
            whole = text.encode()[: max(room, 0)].decode(errors="ignore")
            text = whole[: whole.rfind("\n") + 1] + note if room > 0 else ""
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", place=f"GITHUB_STEP_SUMMARY={place}") from error
