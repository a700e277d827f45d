"""Run folders: the durable record of one checkpoint's predictions, from which every number is
derived.

DIR/run.json                                        manifest and cells (settings, summary),
schema-versioned DIR/predictions/<suite>.<method>[.seed<n>].parquet  one row per item: ids and
numbers, never texts DIR/predictions/<suite>@<digest>.<method>...        the same of a user's own
file whose name another suite has DIR/partial/<suite>.<method>.<key>/                 chunks of a
suite that is being scored; gone when it is finished
"""

from antlm_bench.runs.run_json import SCHEMA_VERSION, cell_to_dict
from antlm_bench.runs.store import (
    RunWriter,
    lock_folder,
    make_folder,
    open_run,
    open_runs,
    open_stored_run,
    read_predictions,
    read_predictions_table,
    summary_matches,
    write_atomically,
)
from antlm_bench.runs.suite_names import (
    base_suite_name,
    cell_has_suite,
    distinguish_suites,
    is_user_suite,
    portable_cells,
)

__all__ = [
    "SCHEMA_VERSION",
    "RunWriter",
    "base_suite_name",
    "cell_has_suite",
    "cell_to_dict",
    "distinguish_suites",
    "is_user_suite",
    "lock_folder",
    "make_folder",
    "open_run",
    "open_runs",
    "open_stored_run",
    "portable_cells",
    "read_predictions",
    "read_predictions_table",
    "summary_matches",
    "write_atomically",
]
