"""Build the tables of `score --shard` and of `merge`."""

from __future__ import annotations

from collections.abc import Sequence

from antlm_bench.reporting.table import Table, build_records_table
from antlm_bench.types import Run


def build_shards_table(runs: Sequence[Run]) -> Table:
    """Build a table with a row per cell of the folders of shards, and what to do next."""
    from antlm_bench.runs import merge_command, open_shard  # pyarrow is slow to import

    shards = [open_shard(run.path) for run in runs]
    records = [
        {
            "suite": cell.suite,
            "method": cell.method,
            "shard": str(shard.shard),
            "chunks": f"{len(cell.chunks)} of {cell.num_chunks}",
            "folder": str(shard.path),
        }
        for shard in shards
        for cell in shard.cells
    ]
    legend = [f"when all shards are scored: {merge_command(shard)}" for shard in shards]
    return build_records_table(records, empty="nothing scored yet", legend=legend)


def build_merge_table(run: Run) -> Table:
    """Build a table with a row per cell that `merge` wrote or kept."""
    records = [
        {
            "suite": cell.suite,
            "method": cell.method,
            "seed": cell.seed,
            "limit": cell.limit,
            "items": cell.estimate.n,
        }
        for cell in run
    ]
    legend = [f"the numbers: antlm-bench report {run.path}"]
    return build_records_table(records, title=f"merged into {run.path}", legend=legend)
