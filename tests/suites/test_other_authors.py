"""Shipped suites of other authors: their files equal the published ones, and are fetched and read.

The data themselves are not part of this repository. A file with the example of the declaration, in
the published columns, stands for each; samples of the real files are read where they are at hand.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from local_server import serve_folder

from antlm_bench.cli.app import run
from antlm_bench.commands.catalog import describe_entry
from antlm_bench.declarations import list_declarations, parse_toml, shipped_declaration
from antlm_bench.errors import DataError
from antlm_bench.runs import open_run
from antlm_bench.suites import loader, sources
from antlm_bench.suites.declaration_types import SourceSpec
from antlm_bench.suites.spec import SuiteSpec, SyntaxGymSpec
from antlm_bench.suites.task_types import read_declaration_file
from antlm_bench.suites.templates import split_file_name

SHARED = Path(__file__).resolve().parents[3] / "shared"
REFERENCE = SHARED / "reference" / "suites"
SAMPLES = Path(os.environ.get("ANTLM_BENCH_DATA") or SHARED / "data") / "strangers"
SPECS = {name: read_declaration_file(path) for name, path in list_declarations("tasks").items()}
LANGUAGES = ("de", "en", "fr", "he", "ru")  # of CLAMS
TABLES = {
    "clams": [f"clams-{language}" for language in LANGUAGES],
    "rublimp": ["rublimp"],
    "sling": ["sling"],
    "syntaxgym": ["syntaxgym", "syntaxgym-excluded"],
    "zorro": ["zorro"],
}  # table of the reference -> the suites that have all its files
SINGLE_FILES = {
    "colorless-en": "colorlessgreen",
    "colorless-he": "colorlessgreen",
    "colorless-it": "colorlessgreen",
    "jblimp": "jblimp",
    "zhoblimp": "zhoblimp",
}  # suite -> table of the reference, of which it has one file
FETCHED = ["clams-he", "colorless-it", "jblimp", "rublimp", "sling", "zhoblimp", "zorro"]


def read_reference(table: str) -> dict[str, str]:
    """Return path in the authors' repository -> sha256."""
    if not REFERENCE.is_dir():
        pytest.skip("needs the reference tables of the published files")
    with (REFERENCE / f"{table}.tsv").open(encoding="utf-8") as file:
        return {row["path"]: row["sha256"] for row in csv.DictReader(file, delimiter="\t")}


def list_published_files(name: str) -> dict[str, str | None]:
    """Return path in the authors' repository -> sha256, as the declaration states them."""
    spec: Any = SPECS[name]
    source = spec.data.sources[0].http.split("/", 6)[6]  # after host, owner, repository, commit
    return {
        source.format_map(split_file_name(file)): file_spec.sha256
        for file, file_spec in spec.data.files.items()
    }


@pytest.mark.parametrize("table", TABLES)
def test_files_are_all_of_the_published_ones(table: str) -> None:
    published = read_reference(table)
    declared = [list_published_files(name) for name in TABLES[table]]
    assert {path: sha for files in declared for path, sha in files.items()} == published
    assert sum(map(len, declared)) == len(published)


@pytest.mark.parametrize("name", SINGLE_FILES)
def test_a_single_file_is_a_published_one(name: str) -> None:
    published = read_reference(SINGLE_FILES[name])
    assert list_published_files(name).items() <= published.items()


def write_toml(path: Path, tables: Mapping[str, Any]) -> None:
    """Write a TOML with one line per key."""

    def dump(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{json.dumps(k)} = {dump(v)}" for k, v in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(map(dump, value)) + "]"
        return json.dumps(value)

    lines = (f"{json.dumps(key)} = {dump(value)}\n" for key, value in tables.items())
    path.write_text("".join(lines), encoding="utf-8")


Copy = Callable[[str, Mapping[str, bytes]], Path]


@pytest.fixture
def copy_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Copy]:
    """copy_suite(name, files) -> a TOML like the shipped one, whose source is a local server with
    these files (name in [data.files] -> its bytes).
    """
    folder = tmp_path / "served"

    def copy(name: str, files: Mapping[str, bytes]) -> Path:
        shipped = shipped_declaration("tasks", name)
        assert shipped
        tables: dict[str, Any] = dict(parse_toml(shipped))
        data = tables["data"]
        path_template = data["sources"][0]["http"].split("/", 6)[6]
        data["sources"] = [{"http": f"{url}/{path_template}"}]
        assert files.keys() <= data["files"].keys()
        data["files"] = {
            file: {"sha256": hashlib.sha256(body).hexdigest()} for file, body in files.items()
        }
        for file, body in files.items():
            path = folder / path_template.format_map(split_file_name(file))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
        tables.pop("expect", None)
        toml = tmp_path / f"{name}.toml"
        write_toml(toml, tables)
        return toml

    with serve_folder(folder, monkeypatch) as url:
        yield copy


def make_file(name: str, record: Mapping[str, Any]) -> bytes:
    """Make a file with one record, in the format of its name. A .txt has the layout of Zorro or
    CLAMS, a .tsv that of the colorless green sentences.
    """
    if name.endswith(".txt"):
        labelled, in_twos = "True\t{good}\nFalse\t{bad}\n", "{bad}\n{good}\n"
        return ((in_twos if "/" in name else labelled).format_map(record)).encode()
    if name.endswith(".tsv"):
        rows = [record | {"form": record[key]} for key in ("good", "bad")]
        lines = [list(rows[0]), *(list(row.values()) for row in rows)]
        return "".join("\t".join(line) + "\n" for line in lines).encode()
    if name.endswith(".csv"):
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(record))
        writer.writeheader()
        writer.writerow(record)
        return text.getvalue().encode()
    line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
    if not name.endswith(".tar.gz"):
        return line
    return make_archive(
        ("ZhoBLiMP/BA_negation.jsonl", line),
        ("ZhoBLiMP/._BA_negation.jsonl", b"a hidden file of macOS"),
        ("ZhoBLiMP/README.md", b"no table"),
    )


def make_archive(*members: tuple[str, bytes]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as opened:
        for path, body in members:
            member = tarfile.TarInfo(path)
            member.size = len(body)
            opened.addfile(member, io.BytesIO(body))
    return archive.getvalue()


def suite_spec(name: str) -> SuiteSpec:
    spec = SPECS[name]
    assert isinstance(spec, SuiteSpec)
    return spec


@pytest.mark.parametrize("name", FETCHED)
def test_a_suite_is_fetched_and_read(name: str, copy_suite: Copy) -> None:
    (example,) = suite_spec(name).example
    toml = copy_suite(name, {example.file: make_file(example.file, example.record)})
    assert run(["data", "fetch", str(toml)]) == 0
    (item,) = loader.load_suite(str(toml)).items
    assert tuple(option.text for option in item.options) == example.options
    assert (item.id, item.labels) == (example.id, example.labels)
    stored = [path.name for path in sources.cache_dir().rglob("*") if path.is_file()]
    # An archive is stored as it is; another file is compressed.
    data = suite_spec(name).data
    assert data
    first = Path(data.where[0].format_map(split_file_name(example.file))).name
    assert stored == [first if first.endswith(".tar.gz") else f"{first}.gz"]


NEGATIVE_SIZE = tarfile.TarInfo("a.jsonl")
NEGATIVE_SIZE.size = -1024


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (b"not a gzip", "damaged archive"),
        (gzip.compress(b"not a tar" * 100), "damaged archive"),
        (make_archive(("a.jsonl", b"{}"))[:-20], "damaged archive"),
        (gzip.compress(NEGATIVE_SIZE.tobuf(tarfile.GNU_FORMAT)), "damaged archive"),
        (make_archive(("x/a.jsonl", b"{}"), ("y/a.jsonl", b"{}")), "two members are called"),
        (make_archive(("README", b"text")), "no table"),
    ],
    # The bytes of an archive hold the time, and workers of pytest must agree on the names of tests.
    ids=["no gzip", "no tar", "cut off", "negative size", "equal names", "no table"],
)
def test_an_archive_that_cannot_be_read_is_one_sentence(
    archive: bytes, message: str, copy_suite: Copy
) -> None:
    toml = copy_suite("zhoblimp", {"ZhoBLiMP.tar.gz": archive})
    with pytest.raises(DataError, match=message):
        loader.load_suite(str(toml))


@pytest.mark.parametrize(
    "source",
    [
        {"http": "https://example.org/{language}"},
        {"hub": "a/b", "config": "{language}", "split": "test"},
    ],
)
def test_an_address_has_the_fields_of_a_file_only(source: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"may contain only .*\{stem\}"):
        SourceSpec.model_validate(source)


def test_other_bytes_than_the_published_are_refused(copy_suite: Copy) -> None:
    served = b'{"good_sentence": "a", "bad_sentence": "b", "phenomenon": "c"}\n'
    toml = copy_suite("jblimp", {"validated_minimal_pairs.jsonl": served})
    published = suite_spec("jblimp").data.files["validated_minimal_pairs.jsonl"].sha256
    text = toml.read_text(encoding="utf-8")
    toml.write_text(text.replace(hashlib.sha256(served).hexdigest(), published), encoding="utf-8")
    with pytest.raises(DataError, match="wrong hash"):
        loader.load_suite(str(toml))
    assert not [path for path in sources.cache_dir().rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", ["jblimp", "syntaxgym", "zhoblimp"])
def test_show_states_whose_a_suite_is(name: str) -> None:
    spec: Any = SPECS[name]
    _, facts = describe_entry([name])
    for fact in ("language", "licence", "citation", "homepage"):
        assert facts[fact] == getattr(spec, fact) != ""
    assert f"0 of {len(spec.data.files)} files here" in facts["data"]


# ---- SyntaxGym


def make_gym(number_of_items: int) -> bytes:
    """Make a SyntaxGym file with two comparisons joined by &."""

    def condition(name: str, verb: str) -> dict[str, Any]:
        regions = enumerate(["the cats", verb], start=1)
        contents = [{"region_number": n, "content": text} for n, text in regions]
        return {"condition_name": name, "regions": contents}

    items = [
        {"item_number": n, "conditions": [condition("a", "sleep"), condition("b", "sleeps")]}
        for n in range(number_of_items)
    ]
    formula = "[(2;%a%) < (2;%b%)] & [(1;%a%) = (1;%b%)]"
    return json.dumps({"predictions": [{"formula": formula}], "items": items}).encode()


@pytest.mark.long
def test_syntaxgym_files_form_one_suite(
    copy_suite: Copy, make_checkpoint: Any, tmp_path: Path
) -> None:
    files = {"Agreement/number_orc.json": make_gym(1), "Licensing/npi_src_any.json": make_gym(3)}
    toml = copy_suite("syntaxgym", files)
    assert run(["data", "fetch", str(toml)]) == 0
    suite = loader.load_suite(str(toml))
    assert [item.id for item in suite.items] == [
        "number_orc.0.1",
        *(f"npi_src_any.{n}.1" for n in range(3)),
    ]
    assert {(item.labels["circuit"], item.labels["suite"]) for item in suite.items} == {
        ("Agreement", "number_orc"),
        ("Licensing", "npi_src_any"),
    }
    command = ["score", "--model", str(make_checkpoint()), "--suite"]
    assert run([*command, str(toml), "--out", str(tmp_path / "several")]) == 0
    (tmp_path / "single.json").write_bytes(make_gym(1))
    assert run([*command, str(tmp_path / "single.json"), "--out", str(tmp_path / "one")]) == 0
    (several,), (single,) = (open_run(tmp_path / folder).cells for folder in ("several", "one"))
    assert several.estimate.n == 4
    assert several.estimate.value == single.estimate.value  # all four items are the same


def test_limits_keep_items_of_every_syntaxgym_file(copy_suite: Copy) -> None:
    files = {"Agreement/number_orc.json": make_gym(4), "Licensing/npi_src_any.json": make_gym(3)}
    suite = loader.load_suite(str(copy_suite("syntaxgym", files)), limit=2)
    assert (len(suite.items), suite.num_left_out) == (4, 3)


def test_syntaxgym_declarations_name_their_levels() -> None:
    spec = SPECS["syntaxgym"]
    assert isinstance(spec, SyntaxGymSpec)
    circuits = {file.partition("/")[0] for file in spec.data.files}
    assert len(circuits) == 6 and len(spec.data.files) == 31
    with pytest.raises(ValueError, match="`macro` names 'file'"):
        SyntaxGymSpec.model_validate(spec.model_dump() | {"macro": ["file"]})
    with pytest.raises(ValueError, match="the label 'x' may contain only"):
        changes = {"labels": {"x": "{y}"}, "groups": ["x"], "macro": []}
        SyntaxGymSpec.model_validate(spec.model_dump() | changes)


# ---- datasets of the hub


@pytest.fixture
def hub_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Replace the hub: every dataset has as many rows as declared. The list of (dataset,
    configuration, split) that are loaded.
    """
    import datasets

    calls: list[tuple[str, ...]] = []

    def load_dataset(ref: str, config: str, *, split: str, **options: Any) -> list[dict[str, Any]]:
        calls.append((ref, config, split))
        name = {"jmichaelov/blimp_nl": "blimp-nl", "EleutherAI/lambada_openai": "lambada"}.get(
            ref, f"multiblimp-{config}"
        )
        spec = suite_spec(name)
        assert spec.data
        (example,) = spec.example
        rows = spec.data.files[example.file].rows or 0
        return [example.record | {"another column": n} for n in range(rows)]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setenv("ANTLM_BENCH_OFFLINE", "")
    return calls


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("multiblimp-rus", ("jumelet/multiblimp", "rus", "train")),
        ("multiblimp-guj", ("jumelet/multiblimp", "guj", "train")),
        ("lambada", ("EleutherAI/lambada_openai", "default", "test")),
    ],
)
def test_a_dataset_of_the_hub_is_fetched_and_read(
    name: str, call: tuple[str, ...], hub_calls: list[tuple[str, ...]]
) -> None:
    assert [status.state for status in sources.fetch_files(suite_spec(name))] == ["complete"]
    suite, (example,) = loader.load_suite(name), suite_spec(name).example
    assert hub_calls == [call]
    assert {tuple(o.text for o in item.options) for item in suite.items} == {example.options}
    expect = suite_spec(name).expect
    assert expect and len(suite.items) == expect.items


@pytest.mark.long
def test_blimp_nl_averages_paradigms_then_phenomena(hub_calls: list[tuple[str, ...]]) -> None:
    suite = loader.load_suite("blimp-nl")
    assert len(suite.items) == 8400 and len(hub_calls) == 84
    assert ("jmichaelov/blimp_nl", "verb_second__order_main", "test") in hub_calls
    assert len({item.labels["phenomenon"] for item in suite.items}) == 22
    assert suite.macro == ("phenomenon", "paradigm")


def test_multiblimp_declarations_differ_only_in_their_language() -> None:
    def without_language(spec: SuiteSpec) -> dict[str, Any]:
        fields = spec.model_dump(exclude={"name", "title", "language", "expect", "example"})
        fields["data"].pop("files")
        return fields

    suites = [suite_spec(name) for name in SPECS if name.startswith("multiblimp-")]
    assert len(suites) == 101
    assert set(loader.list_suite_refs("multiblimp")) == {spec.name for spec in suites}
    first = without_language(suites[0])
    for spec in suites:
        code = spec.name.removeprefix("multiblimp-")
        assert without_language(spec) == first
        assert spec.data and spec.expect and spec.language
        assert {f: s.rows for f, s in spec.data.files.items()} == {
            f"{code}.jsonl": spec.expect.items
        }


@pytest.mark.parametrize("text", ["word", "word ", " word", "", None])
def test_a_cloze_needs_two_words(text: str | None) -> None:
    spec = suite_spec("lambada")
    rows = [("lambada_openai.jsonl", "x.jsonl", iter([(1, {"text": text})]))]
    with pytest.raises(DataError, match=r"'text' must be a text of two words or more"):
        loader.build_items(spec, rows)


# ---- samples of the real files


def read_sample(folder: str, name: str) -> bytes:
    path = SAMPLES / folder / name
    if not path.is_file():
        pytest.skip("needs samples of the authors' files")
    return path.read_bytes()


def test_zorro_pairs_are_lines_in_twos(copy_suite: Copy) -> None:
    stem = "agreement_determiner_noun-across_1_adjective"
    body = read_sample("zorro", f"{stem}.txt")
    files = {"agreement_determiner_noun/across_1_adjective.txt": body}
    items = loader.load_suite(str(copy_suite("zorro", files))).items
    lines = body.decode().splitlines()
    assert [tuple(o.text for o in item.options) for item in items] == list(
        zip(lines[1::2], lines[::2], strict=True)
    )
    assert items[0].labels == {"phenomenon": "agreement_determiner_noun", "paradigm": stem}


@pytest.mark.parametrize("language", sorted(set(LANGUAGES) - {"en"}))
def test_clams_pairs_are_true_and_false_lines(language: str, copy_suite: Copy) -> None:
    body = read_sample("clams", f"{language}.vp_coord.txt")
    items = loader.load_suite(str(copy_suite(f"clams-{language}", {"vp_coord.txt": body}))).items
    rows = [line.split("\t") for line in body.decode().splitlines()]
    true, false = ([text for label, text in rows if label == name] for name in ("True", "False"))
    assert [tuple(o.text for o in item.options) for item in items] == list(
        zip(true, false, strict=True)
    )


def test_rublimp_pairs_are_those_of_a_csv_reader(copy_suite: Copy) -> None:
    names = ["add_new_suffix.csv", "anaphor_agreement_gender.csv"]
    bodies = {name: read_sample("rublimp", name) for name in names}
    items = loader.load_suite(str(copy_suite("rublimp", bodies))).items
    rows = [
        (row["source_sentence"], row["target_sentence"], row["phenomenon"], row["PID"])
        for body in bodies.values()
        for row in csv.DictReader(io.StringIO(body.decode(), newline=""))
    ]
    assert len(rows) == 120
    assert rows == [
        (*(o.text for o in item.options), item.labels["phenomenon"], item.labels["paradigm"])
        for item in items
    ]


def test_sling_pairs_do_not_depend_on_the_case_of_its_columns(copy_suite: Copy) -> None:
    folders = {
        "haishi_ma": "AlternativeQuestion",
        "menself_female": "Anaphor/Plural",
        "animacy_baseline": "Anaphor/reflexive_auto",
        "natural_reflx_verb": "Anaphor/reflexive_natural",
    }
    bodies = {
        f"{folder}/{stem}.jsonl": read_sample("sling", f"{stem}.jsonl")
        for stem, folder in folders.items()
    }
    # The order of the declaration is that of the authors' folders.
    items = loader.load_suite(str(copy_suite("sling", dict(sorted(bodies.items()))))).items
    rows = [
        (row["sentence_good"], row["sentence_bad"], file.rpartition("/")[0])
        for file, body in sorted(bodies.items())
        for row in map(json.loads, body.decode().splitlines())
    ]
    assert rows == [(*(o.text for o in item.options), item.labels["phenomenon"]) for item in items]


def test_syntaxgym_items_are_those_of_the_single_files(copy_suite: Copy, tmp_path: Path) -> None:
    folders = {"cleft": "Long-Distance Dependencies", "mvrr_mod": "Garden-Path Effects"}
    bodies = {
        f"{folder}/{stem}.json": read_sample("syntaxgym", f"{stem}.json")
        for stem, folder in folders.items()
    }
    suite = loader.load_suite(str(copy_suite("syntaxgym", bodies)))
    single = []
    for file, body in bodies.items():
        path = tmp_path / file.rpartition("/")[2]
        path.write_bytes(body)
        items = loader.load_suite(str(path)).items
        single += [(f"{path.stem}.{item.id}", item.options) for item in items]
    assert [(item.id, item.options) for item in suite.items] == single


@pytest.mark.long
def test_a_sample_is_fetched_and_scored(
    copy_suite: Copy, make_checkpoint: Any, tmp_path: Path
) -> None:
    body = read_sample("sling", "haishi_ma.jsonl")
    toml = copy_suite("sling", {"AlternativeQuestion/haishi_ma.jsonl": body})
    assert run(["data", "fetch", str(toml)]) == 0
    command = ["score", "--model", str(make_checkpoint()), "--suite", str(toml), "--limit", "5"]
    assert run([*command, "--out", str(tmp_path / "run")]) == 0
    (cell,) = open_run(tmp_path / "run").cells
    assert cell.estimate.n == 5
    assert any("16 pairs hold two identical sentences" in note for note in cell.summary.notes)
