"""Write the result of `check` for GitHub Actions: annotations, a step summary and an output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from antlm_bench.comparison.verdict import FAILURES, GATE_RULE, CheckResult
from antlm_bench.errors import UsageError
from antlm_bench.printable import make_printable
from antlm_bench.reporting.check_table import overall_status, summarize_verdict

MAX_ANNOTATIONS = 10
"""Number of errors and of warnings that GitHub shows per step; it drops further ones silently."""
MAX_SUMMARY_BYTES = 1024 * 1024
"""Largest summary of a step; GitHub shows nothing of a larger one."""


def workflow_commands(checked: CheckResult) -> str:
    """Return workflow commands that create annotations, one per line.

    Regressions, drops that fail the check and missing cells become errors, undecided suites and
    drops within the margin warnings. A notice states the rule.
    """
    errors: list[tuple[str, str]] = [
        (v.status, summarize_verdict(v)) for v in checked.verdicts if v.status in FAILURES
    ]
    errors += [
        ("incomplete", f"the run lacks {make_printable(cell)}") for cell in checked.missing_cells
    ]
    warnings = [
        ("undecided", summarize_verdict(v)) for v in checked.verdicts if v.status == "undecided"
    ]
    warnings += [
        ("pass, with a drop", summarize_verdict(v))
        for v in checked.verdicts
        if v.status == "pass" and (v.worse_groups or v.headline.is_significantly_worse)
    ]
    lines = [*_annotation_lines("error", errors), *_annotation_lines("warning", warnings)]
    if lines:
        lines += _annotation_lines("notice", [("rule", GATE_RULE)])
    return "".join(f"{line}\n" for line in lines)


def _annotation_lines(kind: str, messages: list[tuple[str, str]]) -> list[str]:
    if len(messages) > MAX_ANNOTATIONS:
        rest = [message for _, message in messages[MAX_ANNOTATIONS - 1 :]]
        messages = [*messages[: MAX_ANNOTATIONS - 1], (f"{len(rest)} more", "\n".join(rest))]
    return [
        f"::{kind} title={escape_property(f'antlm-bench: {title}')}::{escape_message(message)}"
        for title, message in messages
    ]


def escape_message(text: str) -> str:
    """Escape a message of a workflow command.

    Source: https://github.com/actions/toolkit, packages/core/src/command.ts.
    """
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def escape_property(text: str) -> str:
    """Escape a property of a workflow command, such as its title."""
    return escape_message(text).replace(":", "%3A").replace(",", "%2C")


def append_summary(summary_file: str | Path, text: str) -> None:
    """Append Markdown to the step's summary, cut after a line to fit MAX_SUMMARY_BYTES.

    Raises UsageError if the file cannot be written.
    """
    path = Path(summary_file)
    note = "\n\n_(cut: a summary holds 1 MiB)_\n"
    with _convert_errors("GITHUB_STEP_SUMMARY", path):
        size = path.stat().st_size if path.exists() else 0
        room = MAX_SUMMARY_BYTES - size - len(note.encode())
        if len(text.encode()) > room:
            fitting = text.encode()[: max(room, 0)].decode(errors="ignore")
            text = fitting[: fitting.rfind("\n") + 1] + note if room > 0 else ""
        with path.open("a", encoding="utf-8") as file:
            file.write(text)


def append_verdict(output_file: str | Path, checked: CheckResult) -> None:
    """Append the step's output `verdict`: pass, undecided, incomplete, drop or regression.

    output_file: the file that GITHUB_OUTPUT names. Raises UsageError if it cannot be written.
    """
    path = Path(output_file)
    with _convert_errors("GITHUB_OUTPUT", path), path.open("a", encoding="utf-8") as file:
        file.write(f"verdict={overall_status(checked)}\n")


@contextmanager
def _convert_errors(variable: str, path: Path) -> Iterator[None]:
    """Turn an OSError about the file that an environment variable names into a UsageError."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"cannot be written: {error.strerror}", location=f"{variable}={path}"
        ) from error
