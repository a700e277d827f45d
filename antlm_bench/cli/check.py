"""`check` and `baseline`: is a checkpoint worse than the one before? The exit code says it to a CI system."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from antlm_bench.cli.compare import Methods, Mixed, Suites, method_pairs, which
from antlm_bench.cli.shared_options import Csv, Json, Markdown, one_format, run_folder, split, table
from antlm_bench.errors import UsageError


def check_verb(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    against: Annotated[str, which(metavar="BASELINE", help="A run folder, or the name of a saved baseline.")],
    margin: Annotated[
        float | None,
        which(
            metavar="POINTS",
            help="How much worse a suite may be; hundredths of a correlation, of a nat.",
            show_default="policy, suite, 1.0",
        ),
    ] = None,
    group_margin: Annotated[
        float | None, which(metavar="POINTS", help="How much worse a phenomenon may be.", show_default="not judged")
    ] = None,
    policy: Annotated[Path | None, which(metavar="FILE", help="TOML with margins by suite and group.")] = None,
    suite: Suites = None,
    method: Methods = None,
    allow_mixed: Mixed = False,
    strict: Annotated[bool, which("--strict", help="Too few items for the margin is a failure (exit 4).")] = False,
    json: Json = False,
    junit: Annotated[Path | None, table(metavar="FILE", help="JUnit XML as well.")] = None,
    markdown: Annotated[Path | None, table(metavar="FILE", help="Markdown as well.")] = None,
    github: Annotated[bool, table("--github", help="Annotations and the step's summary for GitHub Actions.")] = False,
) -> None:
    """Gate a checkpoint: is it worse than its baseline, by more than a margin? Exit code 0: no; 1: yes."""
    pairs = method_pairs(method)
    if json and github:
        raise UsageError("annotations and JSON are both for stdout", place="--json", hint="two commands")

    from antlm_bench.commands.check import check, failure
    from antlm_bench.compare.margins import margins
    from antlm_bench.reporting import check as words

    allowed = margins(policy or "", margin, group_margin)
    checked = check(run, against, margins=allowed, suites=split(suite), methods=pairs, allow_mixed=allow_mixed)
    found = failure(checked, strict)
    if json:
        sys.stdout.write(words.json(checked, found.exit_code if found else 0))
    else:
        words.show_check(checked)
    if junit:
        from antlm_bench.reporting.junit import junit as xml

        _write(junit, xml(checked, strict))
    if markdown:
        _write(markdown, words.markdown(checked).encode())
    if github:
        from antlm_bench.reporting.github import append_summary, workflow_commands

        print(workflow_commands(checked), end="")
        if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
            append_summary(summary, words.markdown(checked))
    if found:
        raise found


def baseline_save(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    name: Annotated[str, run_folder(metavar="NAME", help="Of the baseline.", show_default="the run folder's")] = "",
    to: Annotated[Path, run_folder(metavar="DIR", help="Folder of baselines.")] = Path("reports/baselines"),
    overwrite: Annotated[bool, run_folder("--overwrite", help="Replace a baseline of that name.")] = False,
) -> None:
    """Save a slim copy of a run (ids and numbers, no texts) to be committed and checked against."""
    from antlm_bench.commands.baseline import save

    print(save(run, name, to=to, overwrite=overwrite))


def baseline_list(
    place: Annotated[Path, run_folder("--in", metavar="DIR", help="Folder of baselines.")] = Path("reports/baselines"),
    json: Json = False,
    csv: Csv = False,
    markdown: Markdown = False,
) -> None:
    """List the baselines that are saved."""
    form = one_format(json=json, csv=csv, markdown=markdown)
    from antlm_bench.commands.baseline import listing
    from antlm_bench.reporting import catalog

    catalog(listing(place), form, empty="no baseline yet")


def _write(path: Path, data: bytes) -> None:
    from antlm_bench.runs import make, write_whole

    make(path.parent)
    write_whole(path, data)
