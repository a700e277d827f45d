"""Run folders: the durable record of one checkpoint's predictions, from which every number is derived.

DIR/run.json                                        manifest and cells (settings, summary), schema-versioned
DIR/predictions/<suite>.<method>[.seed<n>].parquet  one row per item: ids and numbers, never texts
DIR/predictions/<suite>@<digest>.<method>...        the same of a user's own file whose name another suite has
DIR/partial/<suite>.<method>.<key>/                 chunks of a suite that is being scored; gone when it is finished
"""

from antlm_bench.runs.run_json import SCHEMA, cell_fields
from antlm_bench.runs.store import (
    Writer,
    columns,
    lock,
    make,
    predictions,
    read,
    read_all,
    read_stored,
    summary_matches,
    write_whole,
)
from antlm_bench.runs.suite_names import base_name, distinguish_suites, holds, is_own, portable

__all__ = [
    "SCHEMA",
    "Writer",
    "base_name",
    "cell_fields",
    "columns",
    "distinguish_suites",
    "holds",
    "is_own",
    "lock",
    "make",
    "portable",
    "predictions",
    "read",
    "read_all",
    "read_stored",
    "summary_matches",
    "write_whole",
]
