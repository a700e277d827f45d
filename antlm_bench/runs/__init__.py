"""Run folders: the predictions of one checkpoint, from which every number is derived.

    DIR/run.json                               manifest and cells (settings, summaries)
    DIR/predictions/<suite>.<method>.parquet   one row per item: ids and numbers, never texts
    DIR/predictions/<suite>.<method>.seed<n>.parquet      the same for a finetuned task
    DIR/predictions/<suite>@<digest>.<method>.parquet     other items or limits, a user's file of
                                                          that name, or new in place of older ones
    DIR/partial/<suite>.<method>.<key>/        chunks of an unfinished suite
    DIR/shard.json                             no run yet: one shard of the chunks (runs.shards)

In an object store, the names of all predictions files have their hash (runs.object_stores).

The package takes manifests, cells and predictions, and writes and reads these files. It must not
know models, suites or metrics.
"""

from antlm_bench.runs.chunks import read_chunk
from antlm_bench.runs.folder_io import (
    lock_folder,
    make_folder,
    reject_links,
    write_atomically,
    write_file,
    write_files,
)
from antlm_bench.runs.object_stores import ObjectStore, StoredFile, download_runs, register_copy
from antlm_bench.runs.run_json import SCHEMA_VERSION, cell_to_dict
from antlm_bench.runs.shards import (
    Shard,
    ShardRun,
    ShardWriter,
    UnfinishedCell,
    forget_cells,
    is_shard_folder,
    list_shard_folders,
    merge_command,
    open_shard,
)
from antlm_bench.runs.store import (
    RunWriter,
    encode_cell,
    encode_published_run,
    find_complete_cell,
    open_run,
    open_runs,
    open_stored_run,
    read_predictions,
    read_predictions_bytes,
    read_predictions_table,
    replaces,
    summary_matches,
)
from antlm_bench.runs.suite_names import (
    base_suite_name,
    cell_has_suite,
    distinguish_suites,
    is_user_suite,
    select_fullest_cells,
    shorten_cell_paths,
)

__all__ = [
    "SCHEMA_VERSION",
    "ObjectStore",
    "RunWriter",
    "Shard",
    "ShardRun",
    "ShardWriter",
    "StoredFile",
    "UnfinishedCell",
    "base_suite_name",
    "cell_has_suite",
    "cell_to_dict",
    "distinguish_suites",
    "download_runs",
    "encode_cell",
    "encode_published_run",
    "find_complete_cell",
    "forget_cells",
    "is_shard_folder",
    "is_user_suite",
    "list_shard_folders",
    "lock_folder",
    "make_folder",
    "merge_command",
    "open_run",
    "open_runs",
    "open_shard",
    "open_stored_run",
    "read_chunk",
    "read_predictions",
    "read_predictions_bytes",
    "read_predictions_table",
    "register_copy",
    "reject_links",
    "replaces",
    "select_fullest_cells",
    "shorten_cell_paths",
    "summary_matches",
    "write_atomically",
    "write_file",
    "write_files",
]
