"""Cache what the content keys need of a suite, so that finished cells need no items.

A content key depends on two facts about the items: their digest, and how many a limit leaves out.
The declaration, the data files, the request and our own source determine both. A record in the
user's cache holds them under a hash of these inputs, as in checkpoints.checkpoint_records.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from antlm_bench.checkpoints.checkpoint_records import (
    UnhashableError,
    describe_software,
    hash_text,
    read_record,
    write_record,
)
from antlm_bench.declarations import expand_user_path
from antlm_bench.errors import BenchError
from antlm_bench.metrics import METRICS
from antlm_bench.safe_files import read_regular_file
from antlm_bench.scoring.tokens import has_corrected_words
from antlm_bench.suites import loader, sources
from antlm_bench.suites.acceptability import AcceptabilitySpec
from antlm_bench.suites.names import absolute_path
from antlm_bench.suites.pair_files import is_pairs_ref, list_pair_files
from antlm_bench.suites.spec import SuiteSpec, SyntaxGymSpec
from antlm_bench.suites.syntaxgym import is_syntaxgym_file
from antlm_bench.suites.task_types import Suite, SuiteRequest, find_task_type, read_declaration

SUITE_RECORD_VERSION = 1
LOADERS = (loader.load_declared_suite, loader.load_syntaxgym_suite)
"""Functions of which all inputs are known. Suites of other packages and of lm-eval are loaded."""
SPECS = (SuiteSpec, AcceptabilitySpec, SyntaxGymSpec)
"""Classes of the declarations that they load."""


@dataclass(frozen=True, slots=True)
class RecordedSuite:
    """What is known of a suite that was loaded before. It has no items.

    suites.task_types.Suite documents the fields that both classes have.
    """

    name: str
    version: str
    metric: str
    digest: str
    task_type: str
    reduction: str
    has_delimiters: bool
    num_left_out: int | None
    origin: tuple[str, ...]
    has_corrected_words: bool
    """Whether tokens.has_corrected_words is true of a text."""

    @property
    def task_metrics(self) -> None:
        """None: suites of lm-eval are not recorded."""


def any_words_corrected(suite: Suite) -> bool:
    """Return whether words of a text may differ from those of runs without such a correction."""
    return any(has_corrected_words(o.text) for item in suite.items for o in item.options)


def load_and_record(request: SuiteRequest) -> Suite:
    """Load a suite, and store what its keys need, unless its files change meanwhile.

    Raises as `loader.load_requested_suite`.
    """
    inputs = hash_suite_inputs(request)
    suite = loader.load_requested_suite(request)
    if inputs and suite.task_metrics is None and inputs == hash_suite_inputs(request):
        names = [field.name for field in fields(RecordedSuite)]
        content = {name: getattr(suite, name) for name in names if hasattr(suite, name)}
        content["has_corrected_words"] = any_words_corrected(suite)
        write_record(lambda: _record_file(inputs), content)
    return suite


def find_suite_record(request: SuiteRequest) -> RecordedSuite | None:
    """Return what is stored for a request and the files that it would load now. None = nothing."""
    inputs = hash_suite_inputs(request)
    content = read_record(lambda: _record_file(inputs)) if inputs else {}
    if content.keys() != {field.name for field in fields(RecordedSuite)}:
        return None
    return RecordedSuite(**{**content, "origin": tuple(content["origin"])})


def hash_suite_inputs(request: SuiteRequest) -> str:
    """Return a hash of all that decides which items a request loads.

    "" = not all can be hashed: a file is absent or unreadable, or the loader is not ours.
    """
    try:
        if find_task_type(request.ref).load not in LOADERS:
            return ""
        files = _describe_files(request.ref)
        if files is None:
            return ""
        inputs = {
            "record": SUITE_RECORD_VERSION,
            "request": asdict(request),
            "files": files,
            "software": describe_software(),
        }
        return hash_text(json.dumps(inputs, sort_keys=True))
    except (OSError, BenchError, UnhashableError, TypeError, ValueError, RuntimeError):
        return ""


def _describe_files(ref: str) -> dict[str, Any] | None:
    """Return the declaration of a suite, and the paths and hashes of its files.

    None = a file is absent, or its declaration is of another package.
    """
    path = expand_user_path(ref)
    if is_pairs_ref(ref) or is_syntaxgym_file(ref):
        files = list_pair_files(path) if is_pairs_ref(ref) else [path]
        return {
            "path": [absolute_path(path), str(path.resolve())],
            "data": [[str(file), _hash_file(file)] for file in files],
        }
    spec, folder = read_declaration(ref)
    # A subclass may have another meaning.
    if not isinstance(spec, SPECS) or type(spec) not in SPECS:
        return None
    data = sources.hash_local_files(spec, folder)
    if data is None:
        return None
    return {
        "declaration": [type(spec).__name__, spec.model_dump(mode="json")],
        "item_kind": METRICS[getattr(spec, "metric", "accuracy")].item_kind.name,
        "folder": str(Path(folder).resolve()),
        "origin": loader.find_origin(ref, spec),
        "data": data,
    }


def _hash_file(file: Path) -> str:
    return hashlib.sha256(read_regular_file(file)).hexdigest()


def _record_file(inputs: str) -> Path:
    return sources.cache_dir() / "loaded-suites" / f"{inputs[:32]}.json"
