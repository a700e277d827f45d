"""Inputs of a stranger: valid run folders, suites, recipes, checkpoints and answers of servers,
with damages that Hypothesis chooses.

A kind of input is a function that writes one into a folder and returns the command line that reads
it. `run_guarded` runs it in this process, with limits on time and memory.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import strategies as st
from report_runs import make_cell, write_run
from tiny_models import build_model, train_tokenizer

from antlm_bench.cli import app
from antlm_bench.cli.exit_codes import TRACEBACK_VARIABLE
from antlm_bench.declarations import list_declarations, parse_toml
from antlm_bench.suites import downloads

EXIT_CODES = {0, 1, 2, 3, 4, 5, 6}
MAX_SECONDS, MAX_BYTES = 20, 2 << 30  # of CPU time; new memory
HANG_SECONDS = 120  # of wall time, in which a busy machine gives a command its CPU time
Draw = Callable[[st.SearchStrategy[Any]], Any]
DEEP = "@deep@"  # replaced by text that JSON cannot be built from: 900 levels and 100,000 levels
DEEPER = "@deeper@"
VALUES = st.one_of(
    st.sampled_from(
        [
            *(None, True, -1, 0, 1, 7, 2**31, 2**63, 10**9, 10**400, -(10**400), 0.5, 1e308),
            *(5e-324, float("nan"), float("inf"), "", " ", "x" * 5000, "\ud800", "\x1b[31m"),
            *("\0", "../outside", "/etc/passwd", "::error::x", "{file}", "%s", "a/b", "=1+1"),
            *("1", "null", "é", DEEP, DEEPER, [], {}, [None], [[]], [1, "a"], {"a": None}),
            *({"": {}}, ["a"] * 300),
        ]
    ),
    st.integers(-10, 10**6),
    st.floats(),
    st.text(max_size=5),
)


@dataclass(frozen=True)
class Bases:
    """Valid inputs, made once, of which damaged copies are made."""

    run: Path
    other_run: Path
    checkpoints: tuple[Path, ...]
    recipes: tuple[dict[str, Any], ...]
    suites: tuple[dict[str, Any], ...]


def make_bases(root: Path) -> Bases:
    for name, right in (("run", 6), ("other", 4)):
        cells = [make_cell(suite, "causal", right, 10) for suite in ("blimp", "toy")]
        write_run(root / name, cells)
    checkpoints = []
    for kind in ("causal", "masked"):
        folder = root / kind
        with contextlib.redirect_stderr(io.StringIO()):
            train_tokenizer(kind, True, True).save_pretrained(folder)
            build_model(kind, 0).save_pretrained(folder)
        checkpoints.append(folder)
    recipes = [parse_toml(path) for path in list_declarations("models").values()]
    suites = [parse_toml(path) for path in list_declarations("tasks").values()]
    return Bases(root / "run", root / "other", tuple(checkpoints), tuple(recipes), (SUITE, *suites))


SUITE: dict[str, Any] = {
    "kind": "suite",
    "name": "wugs",
    "version": "1",
    "title": "Wugs",
    "licence": "none",
    "citation": "none",
    "macro": ["paradigm"],
    "groups": ["paradigm"],
    "labels": {"paradigm": "{p}"},
    "item": {"options": [{"scored": "{good}"}, {"scored": "{bad}"}]},
    "data": {"where": ["{file}"], "files": {"wugs.jsonl": {"rows": 4}}},
}
PAIRS = [{"good": f"the cat {n} sleeps", "bad": f"the cat {n} sleep", "p": "a"} for n in range(4)]
SYNTAXGYM: dict[str, Any] = {
    "meta": {"name": "npi", "metric": "sum"},
    "predictions": [{"type": "formula", "formula": "(1;%a%) < (1;%b%)"}],
    "region_meta": {"1": "verb"},
    "items": [
        {
            "item_number": number,
            "conditions": [
                {"condition_name": name, "regions": [{"region_number": 1, "content": "a cat"}]}
                for name in ("a", "b")
            ],
        }
        for number in (1, 2)
    ],
}
SAMPLES = [
    {
        "doc_id": number,
        "doc": {},
        "target": 0,
        "arguments": [["", " good"], ["", " bad"]],
        "filtered_resps": [[-1.0, False], [-2.0, False]],
        "resps": [[[-1.0, False]], [[-2.0, False]]],
        "acc": 1.0,
    }
    for number in range(3)
]
RESULTS: dict[str, Any] = {
    "results": {"toy": {"acc,none": 1.0, "alias": "toy"}},
    "group_subtasks": {"toy": []},
    "configs": {"toy": {"target_delimiter": " "}},
    "versions": {"toy": 1},
    "n-samples": {"toy": {"original": 3, "effective": 3}},
    "config": {"model": "hf", "model_args": "pretrained=gpt2", "limit": None},
    "date": 1.7e9,
    "samples": {"toy": SAMPLES},
}


# ---- damages


def damage_json(draw: Draw, document: Any) -> bytes:
    """Return a document as JSON after one to three changes, and sometimes a change of the bytes."""
    document = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 3))):
        document = change_node(draw, document)
    text = json.dumps(document)
    text = text.replace(f'"{DEEP}"', "[" * 900 + "]" * 900)
    text = text.replace(f'"{DEEPER}"', '{"a":' * 100_000 + "1" + "}" * 100_000)
    data = text.encode()
    return damage_bytes(draw, data) if draw(st.integers(0, 9)) == 0 else data


def change_node(draw: Draw, document: Any) -> Any:
    """Replace, remove, repeat or rename one node of a document."""
    nodes = list(iter_nodes(document))
    parent, key = draw(st.sampled_from(nodes)) if nodes else (None, None)
    if parent is None:
        return copy.deepcopy(draw(VALUES))
    change = draw(st.sampled_from(["replace", "replace", "remove", "copy", "rename"]))
    if change == "replace":
        parent[key] = copy.deepcopy(draw(VALUES))  # later changes must not reach the strategy
    elif change == "remove":
        del parent[key]
    elif change == "copy":  # the value of another node: a wrong type, or a name that occurs twice
        other, other_key = draw(st.sampled_from(nodes))
        parent[key] = json.loads(json.dumps(other[other_key]))
    elif isinstance(parent, dict):
        parent[str(draw(VALUES))[:50]] = parent.pop(key)
    else:
        parent.extend(parent[:1] * draw(st.integers(1, 50)))
    return document


def iter_nodes(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (parent, key) of each node below the root."""
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    if isinstance(value, dict | list):
        for key, child in list(entries):
            yield value, key
            if isinstance(child, dict | list):
                yield from iter_nodes(child)


def damage_bytes(draw: Draw, data: bytes) -> bytes:
    position = draw(st.integers(0, len(data)))
    change = draw(st.sampled_from(["cut", "insert", "overwrite", "empty", "repeat"]))
    new = draw(st.binary(min_size=1, max_size=8))
    return {
        "cut": data[:position],
        "insert": data[:position] + new + data[position:],
        "overwrite": data[:position] + new + data[position + len(new) :],
        "empty": b"",
        "repeat": data * 2,
    }[change]


def replace_by_special_file(draw: Draw, path: Path, outside: Path) -> None:
    """Put a link, FIFO, folder or device where a file or folder is expected."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = draw(st.sampled_from(["fifo", "folder", "zero", "dangling", "loop", "file", "outside"]))
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    else:
        targets = {"zero": "/dev/zero", "dangling": outside / "new", "outside": outside}
        path.symlink_to(targets.get(kind, outside / "letter.txt"))


def toml(value: Any) -> str:
    """Return a value as TOML, with tables in one line. TOML has no null; "" stands for it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, float):
        return str(value) if "e" not in str(value) else f"{value:.400g}"
    text = "" if value is None else value
    if text == DEEP:
        return "[" * 900 + "]" * 900
    if text == DEEPER:
        return "[" * 100_000
    return json.dumps(text)


def write_toml(path: Path, tables: Any) -> None:
    lines = (f"{json.dumps(key)} = {toml(value)}\n" for key, value in tables.items())
    path.write_bytes("".join(lines).encode(errors="surrogatepass"))


def damage_tables(draw: Draw, tables: dict[str, Any]) -> dict[str, Any]:
    changed = json.loads(json.dumps(tables))
    for _ in range(draw(st.integers(1, 3))):
        changed = change_node(draw, changed)
    return changed if isinstance(changed, dict) else {}


# ---- kinds of input


def run_folder(draw: Draw, folder: Path, bases: Bases) -> list[str]:
    """A run whose run.json, predictions or files are damaged."""
    run = folder / "run"
    shutil.copytree(bases.run, run)
    document = json.loads((run / "run.json").read_text())
    what = draw(st.sampled_from(["json", "json", "json", "parquet", "file"]))
    if what == "parquet":
        file = draw(st.sampled_from(sorted((run / "predictions").iterdir())))
        data = damage_bytes(draw, file.read_bytes())
        file.write_bytes(data)
        for cell in document["cells"]:
            if cell["predictions"] == f"predictions/{file.name}":
                cell["digest"] = hashlib.sha256(data).hexdigest()
        (run / "run.json").write_text(json.dumps(document))
    elif what == "json":
        (run / "run.json").write_bytes(damage_json(draw, document))
    else:
        names = [".lock", "run.json", "predictions", "partial", ".run.json.tmp"]
        names += [f"predictions/{path.name}" for path in (run / "predictions").iterdir()]
        replace_by_special_file(draw, run / draw(st.sampled_from(names)), folder.parent / "outside")
    other, out = str(bases.other_run), folder / "out"
    samples = folder / "results.json"
    samples.write_text(json.dumps(RESULTS))
    commands = [
        ["report", str(run)],
        ["report", str(run), "--json"],
        ["report", str(run), other, "--markdown"],
        ["report", str(run), "--collection", "babylm-2024", "--partial"],
        ["compare", str(run), other],
        ["compare", other, str(run), "--csv"],
        ["check", str(run), "--against", other],
        ["check", other, "--against", str(run), "--json"],
        ["export", str(run), "--format", "lm-eval", "--out", str(out)],
        ["export", str(run), "--format", "csv", "--out", str(out.with_suffix(".csv"))],
        ["export", str(run), "--format", "model-index", "--out", str(out.with_suffix(".md"))],
        ["export", str(run), "--format", "every-eval-ever", "--out", str(out)],
        ["baseline", "save", str(run), "--name", "x"],
        ["preflight", str(run), "--track", "strict-small"],
        ["acquisition", str(run)],
        ["curve", str(run), other],
        ["submit", str(run), "--out", str(out), "--allow-partial"],
        ["import", str(samples), "--out", str(run)],  # writes into the folder
    ]
    return list(draw(st.sampled_from(commands)))


def suite_file(draw: Draw, folder: Path, bases: Bases) -> list[str]:
    """A declaration of a suite or collection."""
    path = folder / "wugs.toml"
    write_toml(path, damage_tables(draw, draw(st.sampled_from(bases.suites))))
    (folder / "wugs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    commands = [["show"], ["data", "list"], ["data", "verify"], ["data", "where"]]
    score = ["score", "--model", str(bases.checkpoints[0]), "--out", str(folder / "o"), "--suite"]
    return [*draw(st.sampled_from([*commands, score])), str(path)]


def suite_data(draw: Draw, folder: Path, bases: Bases) -> list[str]:
    """Items: JSON lines, CSV, SyntaxGym or stimuli."""
    name = draw(st.sampled_from(["wugs.jsonl", "pairs.jsonl", "pairs.csv", "gym.json", "s.csv"]))
    path = folder / name
    if name == "gym.json":
        path.write_bytes(damage_json(draw, SYNTAXGYM))
    elif name.endswith(".csv"):
        text = "sentence_good,sentence_bad,sentence\n" + "the cat,a cat,a\n" * 3
        path.write_bytes(damage_bytes(draw, text.encode()))
    else:
        rows = PAIRS
        if name == "pairs.jsonl":
            rows = [{"sentence_good": row["good"], "sentence_bad": row["bad"]} for row in PAIRS]
        lines = [json.dumps(row).encode() for row in rows]
        lines[draw(st.integers(0, 3))] = damage_json(draw, rows[0])
        path.write_bytes(b"\n".join(lines))
    if draw(st.integers(0, 19)) == 0:
        replace_by_special_file(draw, path, folder.parent / "outside")
    ref = str(path)
    if name == "wugs.jsonl":
        ref = str(folder / "wugs.toml")
        write_toml(folder / "wugs.toml", SUITE)
    model = str(bases.checkpoints[0])
    if name == "s.csv":
        return ["surprisal", "--model", model, "--in", ref, "--out", str(folder / "o.csv")]
    return ["score", "--model", model, "--suite", ref, "--out", str(folder / "o")]


def recipe_file(draw: Draw, folder: Path, bases: Bases) -> list[str]:
    path = folder / "recipe.toml"
    write_toml(path, damage_tables(draw, draw(st.sampled_from(bases.recipes))))
    return ["show", str(path)]


def checkpoint_json(draw: Draw, folder: Path, bases: Bases) -> list[str]:
    """A checkpoint with a damaged JSON file: configuration or tokenizer."""
    checkpoint = folder / "model"
    shutil.copytree(draw(st.sampled_from(bases.checkpoints)), checkpoint)
    names = sorted(path.name for path in checkpoint.glob("*.json"))
    name = draw(st.sampled_from(["config.json", "config.json", *names]))
    path = checkpoint / name
    path.write_bytes(damage_json(draw, json.loads(path.read_text())))
    if draw(st.integers(0, 19)) == 0:
        replace_by_special_file(draw, path, folder.parent / "outside")
    return open_command(draw, folder, checkpoint)


def weights_file(draw: Draw, folder: Path, bases: Bases) -> list[str]:
    """A checkpoint whose safetensors file is damaged, or is no regular file."""
    checkpoint = folder / "model"
    shutil.copytree(draw(st.sampled_from(bases.checkpoints)), checkpoint)
    path = checkpoint / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    what = draw(st.sampled_from(["header", "header", "length", "bytes", "file", "index"]))
    if what == "header":
        changed = damage_json(draw, header)
        path.write_bytes(len(changed).to_bytes(8, "little") + changed + body)
    elif what == "length":
        size = draw(st.sampled_from([0, 1, length - 1, len(data), 2**25, 2**40, 2**64 - 1]))
        path.write_bytes(size.to_bytes(8, "little") + data[8:])
    elif what == "bytes":
        path.write_bytes(damage_bytes(draw, data))
    elif what == "index":
        index = {"metadata": {}, "weight_map": dict.fromkeys(header, path.name)}
        (checkpoint / "model.safetensors.index.json").write_bytes(damage_json(draw, index))
    else:
        replace_by_special_file(draw, path, folder.parent / "outside")
    return open_command(draw, folder, checkpoint)


def open_command(draw: Draw, folder: Path, checkpoint: Path) -> list[str]:
    stimuli = folder / "s.txt"
    stimuli.write_text("the cat sleeps\n")
    out = str(folder / "o.csv")
    commands = [
        ["doctor", "--model", str(checkpoint)],
        ["preflight", str(checkpoint)],
        ["surprisal", "--model", str(checkpoint), "--in", str(stimuli), "--out", out],
    ]
    return list(draw(st.sampled_from([commands[0], commands[0], commands[1], commands[2]])))


def imported_results(draw: Draw, folder: Path, bases: Bases) -> list[str]:
    path = folder / "results_2026.json"
    document: dict[str, Any] = RESULTS
    if draw(st.booleans()):
        document = {key: value for key, value in RESULTS.items() if key != "samples"}
        lines = [json.dumps(row).encode() for row in SAMPLES]
        lines[draw(st.integers(0, 2))] = damage_json(draw, SAMPLES[0])
        (folder / "samples_toy_2026.jsonl").write_bytes(b"\n".join(lines))
        path.write_text(json.dumps(document))
    else:
        path.write_bytes(damage_json(draw, document))
    return ["import", str(folder), "--out", str(folder / "out")]


def server_answer(draw: Draw, folder: Path, bases: Bases) -> list[str]:
    """Answers of OSF's API and of a file server, as `FakeServer` gives them."""
    entry = {"attributes": {"name": "wugs.jsonl"}, "links": {"download": "https://osf.io/wugs"}}
    page = {"data": [entry], "links": {"next": draw(st.sampled_from([None, "https://osf.io/2"]))}}
    body = "".join(json.dumps(pair) + "\n" for pair in PAIRS).encode()
    FakeServer.answers = {
        "api": damage_json(draw, page),
        "file": damage_bytes(draw, body) if draw(st.booleans()) else body,
    }
    source = draw(
        st.sampled_from([{"osf": "abcde", "path": "{file}"}, {"http": "http://a/{file}"}])
    )
    data = {**SUITE["data"], "sources": [source]}
    write_toml(folder / "wugs.toml", SUITE | {"data": data})
    return ["data", "fetch", str(folder / "wugs.toml"), "--to", str(folder / "to")]


class FakeServer:
    """Stands in for `downloads._open`: a response without a network."""

    answers: ClassVar[dict[str, bytes]] = {}

    def __init__(self, request: Any) -> None:
        is_api = "/nodes/" in request.full_url or request.full_url.endswith("/2")
        data = self.answers["api" if is_api else "file"]
        self.stream, self.length, self.status = io.BytesIO(data), 0, 200
        self.headers: dict[str, str] = {}

    def read1(self, size: int) -> bytes:
        return self.stream.read(size)

    def __enter__(self) -> FakeServer:
        return self

    def __exit__(self, *_: object) -> None: ...


KINDS = (
    run_folder,
    suite_file,
    suite_data,
    recipe_file,
    checkpoint_json,
    weights_file,
    imported_results,
    server_answer,
)


# ---- running


class OutOfTime(BaseException):
    """The command ran longer than MAX_SECONDS."""


def raise_out_of_time(*_: object) -> None:
    raise OutOfTime


@contextlib.contextmanager
def limit_resources() -> Iterator[None]:
    """Limit time and new memory. Beyond them the block raises OutOfTime or MemoryError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MAX_BYTES
    old_limits = resource.getrlimit(resource.RLIMIT_AS)
    numbers = (signal.SIGALRM, signal.SIGPROF)
    old_handlers = [signal.signal(number, raise_out_of_time) for number in numbers]
    resource.setrlimit(resource.RLIMIT_AS, (limit, old_limits[1]))
    signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
    signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        for number, handler in zip(numbers, old_handlers, strict=True):
            signal.signal(number, handler)
        resource.setrlimit(resource.RLIMIT_AS, old_limits)


def run_guarded(argv: list[str], folder: Path, outside: Path) -> str:
    """Run a command line in a folder. Return what is wrong with its end, "" if nothing is."""
    before = snapshot(outside)
    problem = ""
    output = io.StringIO()
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv(TRACEBACK_VARIABLE, "1")
        patch.setenv("ANTLM_BENCH_CACHE", str(folder / "cache"))
        for name in ("ANTLM_BENCH_DATA", "ANTLM_BENCH_PATH", "HF_HUB_OFFLINE"):
            patch.delenv(name, raising=False)
        patch.setenv("ANTLM_BENCH_OFFLINE", "" if argv[:2] == ["data", "fetch"] else "1")
        patch.setattr(downloads, "_open", FakeServer)
        patch.setattr(downloads, "RETRY_DELAYS", (0.0,))
        downloads._list_osf_folder.cache_clear()
        try:
            with limit_resources():
                code = app.run(argv)
            if code not in EXIT_CODES:
                problem = f"exit code {code}: {output.getvalue()[-300:]}"
        except (Exception, OutOfTime) as error:
            frames = traceback.extract_tb(error.__traceback__)
            own = [frame for frame in frames if "antlm_bench" in frame.filename]
            last = own[-1] if own else frames[-1]
            problem = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {error}"
    if snapshot(outside) != before:
        problem += " | wrote outside its folder"
    if leftovers := list_leftovers(folder):
        problem += f" | left {leftovers}"
    return problem


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def list_leftovers(folder: Path) -> list[str]:
    """Return temporary files that a command left. Links and folders of the input are no files."""
    return [
        path.name
        for path in folder.rglob(".*")
        if path.name.endswith((".tmp", ".new", ".old", ".part"))
        and not path.is_symlink()
        and path.is_file()
    ]
