"""`score` of what is finished opens no checkpoint, and accepts no cell whose inputs changed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from score_helpers import make_agreement_rows, write_pairs

from antlm_bench import score
from antlm_bench.checkpoints import checkpoint as checkpoints
from antlm_bench.checkpoints import checkpoint_records, minicons_backend
from antlm_bench.checkpoints.opening import locate_checkpoint
from antlm_bench.checkpoints.resolve import OpenOptions
from antlm_bench.commands import cell_settings
from antlm_bench.commands.score import ScoreCall, ScoreOptions
from antlm_bench.types import Run

OPTIONS: list[dict[str, Any]] = [
    {},
    {"bos": "never"},
    {"max_length": 40},
    {"limit": 3},
    {"compat": "lm-eval"},
    {"compat": "minicons"},
    {"compat": "babylm-2024"},
    {"engine": "minicons", "compat": "minicons"},
]
"""Options of `score` that lead to different content keys."""
FILE_CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "model.safetensors": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "config.json": lambda data: data.replace(b"{", b'{"note": 1,', 1),
    "generation_config.json": lambda data: data + b" ",
    "tokenizer.json": lambda data: data + b" ",
    "tokenizer_config.json": lambda data: data + b" ",
    "special_tokens_map.json": lambda data: b"{}",
    "added_tokens.json": lambda data: b"{}",
    "chat_template.jinja": lambda data: data + b"{{ bos_token }}",
    "modeling_own.py": lambda data: data + b"# code",
    "pytorch_model.bin": lambda data: data + b"weights",
    "vocab.bin": lambda data: data + b"words",
}
"""File of a checkpoint -> its bytes after a change; b"" = it did not exist."""


class Finished:
    """A small run that is finished."""

    def __init__(self, checkpoint: Path, folder: Path, symlinks: bool = False) -> None:
        self.checkpoint = Path(shutil.copytree(checkpoint, folder / "model", symlinks=symlinks))
        self.pairs = write_pairs(folder / "pairs.csv", make_agreement_rows(14))
        self.out = folder / "run"
        self.score()

    def score(self, **options: Any) -> Run:
        [run] = score(str(self.checkpoint), str(self.pairs), out=self.out, **options)
        return run

    def find(self, methods: tuple[str, ...] = (), **options: Any) -> Run | None:
        """Return the finished run, or None if `score` would open the checkpoint."""
        ref, settings = str(self.checkpoint), ScoreOptions(**options)
        call = ScoreCall([ref], [str(self.pairs)], methods, self.out, settings)
        return call.find_finished(ref, call.request)


@pytest.fixture(scope="module")
def finished(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return Finished(make_checkpoint("causal"), tmp_path_factory.mktemp("finished"))


@pytest.fixture
def changed_file() -> Iterator[Callable[[Path, Callable[[bytes], bytes]], None]]:
    """change(file, function of its bytes): the file is restored at the end."""
    before: list[tuple[Path, bytes | None]] = []

    def change(file: Path, edit: Callable[[bytes], bytes]) -> None:
        before.append((file, file.read_bytes() if file.exists() else None))
        file.write_bytes(edit(before[-1][1] or b""))

    yield change
    for file, data in before:
        if data is None:
            file.unlink()
        else:
            file.write_bytes(data)


def refuse_to_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        pytest.fail("a checkpoint was opened")

    monkeypatch.setattr(checkpoints, "open_for_scoring", fail)
    monkeypatch.setattr(minicons_backend, "open_for_minicons", fail)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_a_second_score_opens_nothing(
    make_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    options: dict[str, Any],
) -> None:
    pairs = write_pairs(tmp_path / "pairs.csv", make_agreement_rows(14))
    arguments: Any = (str(make_checkpoint(kind)), str(pairs))
    [first] = score(*arguments, out=tmp_path / "run", **options)
    before = (tmp_path / "run" / "run.json").read_bytes()
    refuse_to_open(monkeypatch)
    [second] = score(*arguments, out=tmp_path / "run", **options)
    assert second == first
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_a_run_without_out_is_found_by_its_name(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    [first] = score(str(finished.checkpoint), str(finished.pairs))
    refuse_to_open(monkeypatch)
    [second] = score(str(finished.checkpoint), str(finished.pairs))
    assert second == first


@pytest.mark.parametrize("name", FILE_CHANGES)
def test_a_changed_file_is_not_finished(
    finished: Finished, changed_file: Callable[..., None], name: str
) -> None:
    assert finished.find() is not None
    changed_file(finished.checkpoint / name, FILE_CHANGES[name])
    assert finished.find() is None


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("model.safetensors", None, None),
        ("vocab.bin", b"a", b"b"),
        ("pytorch_model.bin", b"a", b"b"),
        ("notes.log", b"a", b"b"),
    ],
)
def test_a_change_that_keeps_size_and_time_is_not_finished(
    make_checkpoint: Callable[..., Path],
    tmp_path: Path,
    name: str,
    first: bytes | None,
    second: bytes | None,
) -> None:
    finished = Finished(make_checkpoint("causal"), tmp_path)
    file = finished.checkpoint / name
    if first is not None:
        file.write_bytes(first)
        finished.score()
    assert finished.find() is not None
    before = file.stat()
    data = file.read_bytes()
    with file.open("r+b") as handle:
        handle.write(second or data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (len(data), before.st_mtime_ns)
    assert finished.find() is None


@pytest.mark.parametrize(
    "options",
    [
        {"bos": "never"},
        {"ties": "strict"},
        {"compat": "minicons"},
        {"max_length": 8},
        {"dtype": "bfloat16"},
        {"precision": "adaptive"},
        {"engine": "minicons"},
        {"limit": 2},
        {"columns": {"good": "bad", "bad": "good"}},
        {"trust_remote_code": True},
        {"tokenizer": "other"},
        {"again": True},
        {"shard": "1/2"},
    ],
    ids=str,
)
def test_other_options_are_not_finished(
    finished: Finished, make_checkpoint: Callable[..., Path], options: dict[str, Any]
) -> None:
    if "tokenizer" in options:
        options = {"tokenizer": str(make_checkpoint("causal", adds=False))}
    assert finished.find(**options) is None


def test_another_method_is_not_finished(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    finished = Finished(make_checkpoint("masked"), tmp_path)
    assert finished.find(("mlm",)) is not None
    assert finished.find(("mlm-l2r",)) is None


def test_changed_items_are_not_finished(
    finished: Finished, changed_file: Callable[..., None]
) -> None:
    changed_file(finished.pairs, lambda data: data.replace(b"house", b"horse"))
    assert finished.find() is None


def test_changed_predictions_are_not_finished(
    finished: Finished, changed_file: Callable[..., None]
) -> None:
    [file] = finished.out.glob("predictions/*")
    changed_file(file, lambda data: data[:-1])
    assert finished.find() is None


def test_other_conventions_are_not_finished(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cell_settings, "CONVENTIONS_VERSION", 99)
    assert finished.find() is None


@pytest.mark.parametrize("fact", ["libraries", "source", "packages", "gpus", "visible_gpus"])
def test_other_software_is_not_finished(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, fact: str
) -> None:
    facts = checkpoint_records.describe_software()
    monkeypatch.setattr(checkpoint_records, "describe_software", lambda: {**facts, fact: "other"})
    assert finished.find() is None


def test_the_hash_of_our_code_covers_what_decides_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []

    def collect(files: list[Path]) -> str:
        hashed.extend(map(str, files))
        return ""

    monkeypatch.setattr(checkpoint_records, "hash_files", collect)
    checkpoint_records._hash_source()
    for name in ("checkpoints/loader.py", "scoring/text.py", "architectures/gpt_bert.py"):
        assert any(file.endswith(name) for file in hashed), name


def write_record(file: Path, content: object, checksum: str = "") -> None:
    text = json.dumps(content)
    checksum = checksum or hashlib.sha256(text.encode()).hexdigest()
    file.write_text(json.dumps({"sha256": checksum, "content": text}))


@pytest.fixture
def record(finished: Finished, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A copy of the record of `finished`, which is read instead."""
    locate_record, copy = checkpoint_records._record_file, tmp_path / "record.json"

    def copy_record(inputs: str, weights: str) -> Path:
        copy.write_bytes(locate_record(inputs, weights).read_bytes())
        return copy

    monkeypatch.setattr(checkpoint_records, "_record_file", copy_record)
    assert finished.find() is not None
    monkeypatch.setattr(checkpoint_records, "_record_file", lambda *_: copy)
    return copy


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"name": 1}', b'{"content": "{}"}'])
def test_a_damaged_record_is_not_used(finished: Finished, record: Path, content: bytes) -> None:
    record.write_bytes(content)
    assert finished.find() is None


def test_a_record_with_a_wrong_checksum_is_not_used(finished: Finished, record: Path) -> None:
    document = json.loads(record.read_text())
    write_record(record, json.loads(document["content"]))
    assert finished.find() is not None
    write_record(record, json.loads(document["content"]), checksum="0" * 64)
    assert finished.find() is None


@pytest.mark.parametrize("fact", ["weights", "config", "tokenizer", "weight_files"])
def test_a_record_that_does_not_fit_the_files_is_not_used(
    finished: Finished, record: Path, fact: str
) -> None:
    content = json.loads(json.loads(record.read_text())["content"])
    del content["metadata"][fact]
    write_record(record, content)
    assert finished.find() is None


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="files without owners")
def test_a_record_of_another_user_is_not_used(
    finished: Finished, record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = record.stat().st_uid
    monkeypatch.setattr(checkpoint_records.os, "getuid", lambda: owner + 1)
    assert finished.find() is None


def test_a_cache_that_cannot_be_written_stops_no_score(
    make_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ANTLM_BENCH_CACHE", "/dev/null/cache")
    finished = Finished(make_checkpoint("causal"), tmp_path)
    assert finished.find() is None


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file that cannot be read")
def test_a_file_that_cannot_be_read_stops_no_score(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = Path(shutil.copytree(make_checkpoint("causal"), tmp_path / "copy"))
    (checkpoint / "notes.txt").symlink_to("/proc/self/mem")
    finished = Finished(checkpoint, tmp_path, symlinks=True)
    assert finished.find() is None


def test_damaged_weights_beside_a_tokenizer_stop_no_score(
    finished: Finished, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    tokenizer = Path(shutil.copytree(make_checkpoint("causal"), tmp_path / "tokenizer"))
    (tokenizer / "model.safetensors").unlink()
    (tokenizer / "model.safetensors.index.json").write_text("{}")
    arguments: Any = (str(finished.checkpoint), str(finished.pairs))
    [run] = score(*arguments, out=tmp_path / "run", tokenizer=str(tokenizer))
    assert len(run.cells) == 1


def test_a_package_outside_its_installation_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed, other = tmp_path / "installed", tmp_path / "other"
    for folder in (installed, other):
        (folder / "greeting").mkdir(parents=True)
        (folder / "greeting" / "__init__.py").touch()
    (installed / "greeting-1.0.dist-info").mkdir()
    (installed / "greeting-1.0.dist-info" / "METADATA").write_text("Name: greeting\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(installed)
    checkpoint_records._check_location("greeting")
    monkeypatch.syspath_prepend(other)
    with pytest.raises(checkpoint_records.UnhashableError):
        checkpoint_records._check_location("greeting")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", '{"auto_map": {"AutoModelForCausalLM": "owner/name--modeling.Model"}}'),
        ("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["owner/name--a.B", null]}}'),
        ("tokenizer_config.json", '{"limit": Infinity, "auto_map": "owner/name--a.B"}'),
    ],
)
@pytest.mark.parametrize("has_own_tokenizer", [True, False])
def test_code_of_another_repository_is_not_remembered(
    finished: Finished, tmp_path: Path, name: str, text: str, has_own_tokenizer: bool
) -> None:
    changed = Path(shutil.copytree(finished.checkpoint, tmp_path / "changed"))
    options = OpenOptions(
        trust_remote_code=True, tokenizer=None if has_own_tokenizer else str(changed)
    )
    ref = str(changed if has_own_tokenizer else finished.checkpoint)
    assert checkpoint_records.hash_inputs(*locate_checkpoint(ref, options), "native")
    (changed / name).write_text(text)
    assert checkpoint_records.hash_inputs(*locate_checkpoint(ref, options), "native") == ""


def test_a_file_that_changes_while_opening_is_not_remembered(
    make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_for_scoring = checkpoints.open_for_scoring

    def open_and_change(ref: str, *rest: Any) -> Any:
        opened = open_for_scoring(ref, *rest)
        (Path(ref) / "tokenizer_config.json").write_bytes(b"{}")
        return opened

    monkeypatch.setattr(checkpoints, "open_for_scoring", open_and_change)
    assert Finished(make_checkpoint("causal"), tmp_path).find() is None
