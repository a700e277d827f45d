"""`acquisition`: when a model's checkpoints acquired the words of the CDI, beside children."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from antlm_bench.verbs.panels import table, what


def acquisition_verb(
    run: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders of checkpoints, or folders of them.")
    ],
    suite: Annotated[str, what(metavar="NAME", help="The suite of words.")] = "aoa-words-2026",
    out: Annotated[Path | None, table("--out", metavar="FILE", help="Every word: .csv .tsv .parquet")] = None,
) -> None:
    """Correlate the order in which a model and children acquire words (BabyLM 2026), from scored checkpoints."""
    from antlm_bench.commands.acquisition import acquisition
    from antlm_bench.rendering import facts
    from antlm_bench.runs.long import known_ending, write_table

    if out:
        known_ending(out)
    found = acquisition(run, suite)
    for one in found:
        said: dict[str, object] = {"method": one.method, "checkpoints": one.checkpoints}
        said["score"] = f"{one.score:.3f} (as BabyLM 2026 publishes it: Pearson's r, 0 where p > 0.1)"
        if one.correlation:
            r = one.correlation
            said["correlation"] = f"{r.value:.3f} [{r.low:.3f}, {r.high:.3f}], p = {one.p:.2g}"
            said["words"] = f"{r.n} of {len(one.rows)} have an age for both"
        else:
            said["correlation"] = f"undefined: too few of {len(one.rows)} words have an age for both"
        facts(one.model, said)
    if out:
        write_table(out, [{"model": one.model, "method": one.method, **row} for one in found for row in one.rows])
