"""Run folders: the durable record of one checkpoint's predictions, from which every number is derived.

DIR/run.json                                        manifest and cells (settings, summary), schema-versioned
DIR/predictions/<suite>.<method>[.seed<n>].parquet  one row per item: ids and numbers, never texts
DIR/partial/<suite>.<method>.<key>/                 chunks of a suite that is being scored; gone when it is finished
"""

from antlm_bench.runs.document import SCHEMA
from antlm_bench.runs.folder import Writer, columns, lock, make, predictions, read, summary_matches, write_whole

__all__ = ["SCHEMA", "Writer", "columns", "lock", "make", "predictions", "read", "summary_matches", "write_whole"]
