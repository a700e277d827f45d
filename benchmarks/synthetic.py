"""Fill a data folder with synthetic files, to time whole runs without gated or missing data.

    python benchmarks/synthetic.py DIR

DIR becomes a value for ANTLM_BENCH_DATA. It links to every file of the present data folder. Files
that a leaderboard needs and that are absent or lack rows get synthetic rows in the official layout
and number, with random words of children (existing rows stay, first). Synthetic files are
printed. Scores on such data say nothing about a model.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from antlm_bench.exports.leaderboard import list_years, load_leaderboard
from antlm_bench.suites import sources, task_types
from antlm_bench.suites.classification import ClassificationSpec
from antlm_bench.suites.declaration_types import FileSpec
from antlm_bench.suites.spec import SuiteSpec

TEXTS = (
    "sentence_",
    "Context",
    "Target",
    "prefix_",
    "property_phrase",
    "input_prefix",
    "options",
    "prompt",
    "solution",
)


def make_rows(
    spec: SuiteSpec | ClassificationSpec, file: str, words: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yield the rows of one file, of the official number, with texts to be scored or classified."""
    return (
        make_scored_rows(spec, file, words)
        if isinstance(spec, SuiteSpec)
        else make_classified_rows(spec, file, words)
    )


def make_scored_rows(spec: SuiteSpec, file: str, words: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the example record of the suite with other words, in the expected groups."""
    assert spec.expect
    rng = random.Random(f"{spec.name} {file}")
    for group, n in (spec.expect.counts or {"": spec.expect.items}).items():
        record = dict(next(example.record for example in spec.example if not example.skipped))
        if "numops" in record:
            stem, number, _ = group.rsplit("_", 2)
            record["numops"] = int(number)
        else:
            renamed = spec.rename.get(spec.groups[-1], {}) if group else {}
            stem = next((ours for ours, name in renamed.items() if name == group), group)
            record |= {key: group for key in ("UID", "Domain") if key in record}
        if group and file != f"{stem}.jsonl":
            continue
        for i in range(n):
            texts = {
                key: replace_words(value, words, rng)
                for key, value in record.items()
                if key.startswith(TEXTS)
            }
            if spec.metric == "auc" and "label" in record:
                record["label"] = i % 2  # judgements of one class have no score
            yield record | texts | ({"example_id": f"example {i}"} if not group else {})


def make_classified_rows(
    spec: ClassificationSpec, file: str, words: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yield the example record of the task with other words and classes."""
    rng = random.Random(f"{spec.name} {file}")
    name, task = next(
        (name, task) for name, task in spec.task.items() if file in (task.train, task.valid)
    )
    record = next(example.record for example in spec.example if example.task == name)
    for _ in range(spec.data.files[file].rows or 0):
        texts = {
            key: replace_words(value, words, rng)
            for key, value in record.items()
            if isinstance(value, str)
        }
        yield record | texts | {task.label: rng.randrange(len(task.classes))}


def replace_words(
    value: str | list[str], words: Sequence[str], rng: random.Random
) -> str | list[str]:
    if isinstance(value, list):
        return [str(replace_words(text, words, rng)) for text in value]
    return " ".join(rng.choices(words, k=rng.randint(2, 5))) + " " * value.endswith(" ")


def link_files(root: Path, folder: Path) -> None:
    """Link every file under `root` in `folder`, which must be new or empty."""
    if folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"{folder} is not empty: choose a new folder")
    for path in root.rglob("*"):
        if path.is_file():
            link = folder / path.relative_to(root)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())


def load_leaderboard_specs() -> dict[str, SuiteSpec | ClassificationSpec]:
    """Load the specs of all leaderboard suites whose items are texts to be scored or classified."""
    parts = [
        part
        for year in list_years()
        for part in (*load_leaderboard(year).parts, *load_leaderboard(year).milestone_parts)
    ]
    declared = {
        part.suite: task_types.read_declaration(part.suite)[0] for part in parts if part.suite
    }
    texts = {
        name: spec
        for name, spec in declared.items()
        if isinstance(spec, SuiteSpec) and not spec.times
    }
    return texts | {
        name: spec for name, spec in declared.items() if isinstance(spec, ClassificationSpec)
    }


def list_missing_files(spec: SuiteSpec | ClassificationSpec) -> Iterator[sources.FileStatus]:
    """Yield the absent or incomplete files of a suite (classification: training files only)."""
    status_by_file = {row.file: row for row in sources.verify_files(spec)}
    if isinstance(spec, SuiteSpec):
        yield from (row for row in status_by_file.values() if row.state in ("absent", "incomplete"))
        return
    for task in spec.task.values():
        if task.train and status_by_file[task.train].state == "absent":
            candidates = [
                (substitute.file, FileSpec(sha256=substitute.sha256))
                for substitute in task.substitutes
            ]
            if not any(sources.find_local_file(spec, file, sha) for file, sha in candidates):
                yield status_by_file[task.train]


def write_missing_files(
    root: Path, folder: Path, spec: SuiteSpec | ClassificationSpec, words: Sequence[str]
) -> Iterator[tuple[Path, int, int]]:
    """Write the missing files of a suite; yield (file, synthetic rows, all rows)."""
    assert spec.data
    for row in list_missing_files(spec):
        default_path = spec.data.where[0].format(file=row.file, stem=row.file.rpartition(".")[0])
        path = folder / (row.path.relative_to(root) if row.path else f"{default_path}.gz")
        if path.exists() and not path.is_symlink():
            continue  # two years of a suite have one file
        present_rows = (
            sources.get_file(spec, row.file).raw.decode().splitlines() if row.path else []
        )
        synthetic_rows = [json.dumps(record) for record in make_rows(spec, row.file, words)]
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = "".join(
            f"{line}\n" for line in [*present_rows, *synthetic_rows[len(present_rows) :]]
        ).encode()
        path.write_bytes(gzip.compress(raw, mtime=0) if path.suffix == ".gz" else raw)
        yield path, len(synthetic_rows) - len(present_rows), len(synthetic_rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    root = sources.data_roots()[0]
    link_files(root, folder)
    suites = load_leaderboard_specs()
    words = list(json.loads(sources.get_file(suites["aoa-words-2026"], "cdi_childes.json").raw))
    for spec in suites.values():
        for path, num_synthetic, n in write_missing_files(root, folder, spec, words):
            print(f"{path.relative_to(folder)}: {num_synthetic:,} of {n:,} rows are synthetic")


if __name__ == "__main__":
    main()
