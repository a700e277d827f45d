"""The shipped suites: each example tests itself, and the real files give the published counts, ids
and labels.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from antlm_bench.commands.catalog import describe_entry as show
from antlm_bench.declarations import list_declarations, parse_toml
from antlm_bench.errors import DataError
from antlm_bench.suites import classification_loader, loader, records, sources
from antlm_bench.suites.collection import CollectionSpec
from antlm_bench.suites.spec import ExampleSpec, SuiteSpec
from antlm_bench.suites.task_types import read_declaration_file

DECLARED = {name: read_declaration_file(path) for name, path in list_declarations("tasks").items()}
SUITES = {name: spec for name, spec in DECLARED.items() if isinstance(spec, SuiteSpec)}
COLLECTIONS = {name: spec for name, spec in DECLARED.items() if isinstance(spec, CollectionSpec)}
EXAMPLES = [
    pytest.param(spec, example, id=f"{name}-{number}")
    for name, spec in SUITES.items()
    for number, example in enumerate(spec.example)
]
PIQA = {"global-piqa-parallel-2026": 4, "global-piqa-nonparallel-2026": 2}  # -> options of an item
ABSENT = {
    "comps",
    "ewok-2025",
    "ewok-2026",
    "cola",
    "itacola",
    "jcola-in-domain",
    "jcola-out-of-domain",
    *PIQA,
}  # not at hand anywhere: tested on files made here
# here / published
REDUCED = {
    "blimp": (64_000, 67_000),
    "blimp-filtered": (57_176, 59_875),
    "blimp-fast": (12_827, 13_400),
}


def test_the_suites_of_the_literature_are_shipped() -> None:
    wanted = "blimp blimp-filtered blimp-fast supplement supplement-fast "
    wanted += "ewok-2025 ewok-2026 ewok-fast-2025 "
    wanted += "entity-tracking-2025 entity-tracking-2026 comps wug-adj wug-past nano"
    assert {*wanted.split(), *PIQA} <= set(SUITES)
    zero_shot = {
        "zero-shot-2024",
        "zero-shot-2025",
        "zero-shot-2026",
        "zero-shot-fast",
        "zero-shot-fast-2026",
    }
    assert set(COLLECTIONS) == zero_shot | {f"babylm-{year}" for year in (2023, 2024, 2025, 2026)}


@pytest.mark.parametrize("name", DECLARED)
def test_a_declaration_goes_by_its_file_and_says_whose_it_is(name: str) -> None:
    spec = DECLARED[name]
    assert spec.name == name
    if isinstance(spec, SuiteSpec):
        assert spec.licence and spec.citation and spec.example and spec.expect


@pytest.mark.parametrize("key", ["name", "version", "title", "licence", "citation"])
def test_a_shipped_declaration_states_what_users_may_leave_out(key: str) -> None:
    for name, path in list_declarations("tasks").items():
        stated = parse_toml(path).get(key)
        if stated is None:  # collections and ages of acquisition have no licence
            assert key in ("licence", "citation") and not isinstance(DECLARED[name], SuiteSpec)


@pytest.mark.parametrize("name", COLLECTIONS)
def test_a_collection_s_members_are_shipped_suites(name: str) -> None:
    scored = [
        suite
        for member in COLLECTIONS[name].members
        if member.made_by == "score"
        for suite in member.suite_names
    ]
    assert loader.list_suite_refs(name) == list(dict.fromkeys(scored))
    assert set(scored) <= set(SUITES)
    for member in COLLECTIONS[name].members:
        if member.made_by == "finetune":
            assert set(member.tasks) <= set(classification_loader.list_tasks(member.suite))
        elif member.made_by == "nothing":
            assert member.suite not in DECLARED, "there is such a suite now: say who makes it"


@pytest.mark.parametrize(("spec", "example"), EXAMPLES)
def test_an_example_becomes_what_it_says(spec: SuiteSpec, example: ExampleSpec) -> None:
    def record() -> records.Records:
        yield 1, dict(example.record)

    if example.skipped:
        with pytest.raises(DataError, match="all rows are skipped"):
            loader.build_items(spec, [(example.file, example.file, record())])
        return
    (item,) = loader.build_items(spec, [(example.file, example.file, record())])
    assert tuple(option.text for option in item.options) == example.options
    assert item.gold == example.gold
    assert item.labels == example.labels
    assert item.id == example.id or example.id is None
    scored = tuple(o.text if o.span is None else o.text[slice(*o.span)] for o in item.options)
    assert scored == (example.scored or example.options)
    assert all(o.span is None or o.span[1] == len(o.text) for o in item.options)
    if spec.data:
        assert example.file in spec.data.files


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(set(SUITES) - ABSENT - set(REDUCED) - {"nano"}))
@pytest.mark.usefixtures("real_data")
def test_a_complete_suite_loads_with_the_published_counts(name: str) -> None:
    suite, spec = loader.load_suite(name), SUITES[name]
    assert spec.expect
    assert len(suite.items) == spec.expect.items
    counted = Counter(item.labels[suite.groups[-1]] for item in suite.items) if suite.groups else {}
    assert counted == spec.expect.counts
    assert not any("incomplete" in note for note in suite.notes)
    assert {row.state for row in sources.verify_files(spec)} == {"verified"}


@pytest.mark.long
@pytest.mark.parametrize("name", REDUCED)
@pytest.mark.usefixtures("real_data")
def test_a_reduced_suite_says_what_is_missing(name: str) -> None:
    here, published = REDUCED[name]
    suite = loader.load_suite(name, allow_incomplete=True)
    assert len(suite.items) == here
    assert f"incomplete: {here} of {published} pairs (10 of 67 paradigms short)" in suite.notes
    assert len({item.labels["paradigm"] for item in suite.items}) == 67
    assert {item.labels["field"] for item in suite.items} == {
        "morphology",
        "semantics",
        "syntax",
        "syntax/semantics",
    }
    with pytest.raises(DataError, match=f"incomplete: {here} of {published}") as caught:
        loader.load_suite(name)
    assert "--allow-incomplete" in caught.value.hint
    states = Counter(row.state for row in sources.verify_files(SUITES[name]))
    assert states == {"verified": 57, "incomplete": 10}


@pytest.mark.long
def test_blimp_is_read_as_written(real_data: Path) -> None:
    suite = loader.load_suite("blimp", allow_incomplete=True)
    by_id = {item.id: item for item in suite.items}
    assert len(by_id) == len(suite.items)
    for line in gzip.decompress(
        (real_data / "blimp" / "passive_1.jsonl.gz").read_bytes()
    ).splitlines():
        record = json.loads(line)
        item = by_id[f"passive_1_{record['pairID']}"]
        assert [option.text for option in item.options] == [
            record["sentence_good"],
            record["sentence_bad"],
        ]
        assert (item.gold, item.labels["phenomenon"]) == (0, record["linguistics_term"])
    same = [item.id for item in suite.items if item.options[0].text == item.options[1].text]
    noted = "passive_1: 324, 810; principle_A_case_2: 105, 287, 372, 816, 967"
    assert noted in suite.notes[0]
    assert same == [
        f"{group}_{n}"
        for group, ns in (part.split(": ") for part in noted.split("; "))
        for n in ns.split(", ")
    ]


@pytest.mark.long
@pytest.mark.parametrize("name", ["blimp-filtered", "blimp-fast"])
@pytest.mark.usefixtures("real_data")
def test_the_note_on_identical_pairs_is_true(name: str) -> None:
    suite = loader.load_suite(name, allow_incomplete=True)
    same = [item.id for item in suite.items if item.options[0].text == item.options[1].text]
    assert f"{len(same)} pairs hold two identical sentences ({', '.join(same)})" in suite.notes[0]


def test_dialogues_keep_their_line_breaks(real_data: Path) -> None:
    suite = loader.load_suite("supplement")
    turns = [item for item in suite.items if item.labels["paradigm"] == "turn_taking"]
    first = json.loads(
        (real_data / "supplement" / "turn_taking.jsonl").read_text(encoding="utf-8").split("\n")[0]
    )
    assert turns[0].options[0].text == first["sentence_good"]
    assert "\n" in turns[0].options[0].text


def test_ewok_fast_is_read_from_the_archive(real_data: Path) -> None:
    suite = loader.load_suite("ewok-fast-2025")
    for item in suite.items:
        good, bad = item.options
        assert good.span and bad.span and good.text[: good.span[0]] == bad.text[: bad.span[0]]
        assert good.text[good.span[0]] == " " and good.text != bad.text
    assert not list(real_data.glob("**/physical-dynamics.jsonl"))


@pytest.mark.long
@pytest.mark.usefixtures("real_data")
def test_entity_tracking_2026_drops_options_that_name_nothing() -> None:
    full, kept = (
        loader.load_suite("entity-tracking-2025"),
        loader.load_suite("entity-tracking-2026"),
    )
    named = {
        item.id
        for item in full.items
        if any("nothing" in o.text[slice(*o.span or ())] for o in item.options)
    }
    assert len(full.items) - len(named) == len(kept.items) == 6_780
    assert all(len(item.options) == 5 for item in full.items)
    texts = [item.options for item in full.items if item.id not in named]
    assert texts == [
        item.options for item in kept.items
    ]  # same order; the ids are renumbered, as officially


@pytest.mark.usefixtures("real_data")
def test_wug_ratings_are_gold() -> None:
    past = loader.load_suite("wug-past")
    assert past.metric == "spearman" and {len(item.options) for item in past.items} == {3}
    assert all(isinstance(item.gold, float) for item in past.items)
    assert (
        past.items[0].options[1].text.startswith("Fill in the blank") and past.items[0].gold == 0.72
    )


def test_comps_is_scored_on_the_property(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "comps").mkdir()
    row = {
        "prefix_acceptable": "A wug",
        "prefix_unacceptable": "A dax",
        "property_phrase": "can fly.",
    }
    for stem in ("base", "wugs", "wugs_dist-before", "wugs_dist-in-between"):
        (tmp_path / "comps" / f"comps_{stem}.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.setenv("ANTLM_BENCH_DATA", str(tmp_path))
    suite = loader.load_suite("comps", allow_incomplete=True)
    assert [item.id for item in suite.items] == [
        "base_0",
        "wugs_0",
        "wugs_dist_before_0",
        "wugs_dist_in_between_0",
    ]
    assert suite.items[0].options[1].text == "A dax can fly."
    assert suite.items[0].options[1].span == (6, 14)
    assert len({item.cluster for item in suite.items} - {""}) == 1
    assert "incomplete: 4 of 91028 pairs (4 of 4 subsets short)" in suite.notes


@pytest.mark.parametrize("name", PIQA)
def test_global_piqa_is_fetched_from_the_pinned_rows_of_the_hub(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the hub gives them: more columns than are needed; read again from the cache, offline."""
    import datasets

    kind, asked = name.split("-")[2], list[tuple[str, ...]]()
    solutions = {f"solution{k}": f"lets its {k} dogs out." for k in range(PIQA[name])}
    row = {
        "prompt": "A wug",
        **solutions,
        "label": 1,
        "language": "eng_latn",
        "supplement": None,
        "place": "Zürich",
    }
    rows = [
        row | {"example_id": f"eng_latn_{n}"}
        for n in range({"parallel": 103, "nonparallel": 100}[kind])
    ]

    def load_dataset(*args: str, **options: str) -> list[dict[str, object]]:
        asked.append((*args, options["split"], options["revision"]))
        return rows

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setenv("ANTLM_BENCH_OFFLINE", "")
    last = rows.pop()
    with pytest.raises(
        DataError, match=f"not the official file: {len(rows)} rows, expected {len(rows) + 1}"
    ):
        sources.fetch_files(SUITES[name])
    rows.append(last)
    asked.clear()
    assert [row.state for row in sources.fetch_files(SUITES[name])] == ["complete"]
    revision = {"parallel": "b0b18516a8bc", "nonparallel": "6777742fa363"}[kind]
    [(*what, pinned)] = asked
    assert what == [f"mrlbenchmarks/global-piqa-{kind}", "eng_latn", "test"] and pinned.startswith(
        revision
    )
    monkeypatch.setenv("ANTLM_BENCH_OFFLINE", "1")
    suite = loader.load_suite(name)
    assert (
        len(suite.items) == len(rows)
        and suite.reduction == "per-token"
        and suite.groups == suite.macro == ()
    )
    assert suite.items[7].id == "eng_latn_7_0" and suite.items[7].labels == {
        "example": "eng_latn_7"
    }
    texts = [(o.text, o.text[slice(*o.span or ())]) for o in suite.items[0].options]
    assert (
        texts == [(f"A wug {text}", f" {text}") for text in solutions.values()]
        and suite.items[0].gold == 1
    )


def test_show_says_which_score_decides_and_what_a_member_averages() -> None:
    assert (
        show(["global-piqa-parallel-2026"])[1]["metric"] == "accuracy, by log-probability per-token"
    )
    assert show(["blimp"])[1]["metric"] == "accuracy"
    assert f"Global PIQA: {' and '.join(PIQA)}" in show(["zero-shot-2026"])[1]["members"].split(
        "\n"
    )


@pytest.mark.parametrize(
    "folder", ["", "full_eval", "evaluation_data/full_eval", "evaluation_data/fast_eval"]
)
@pytest.mark.parametrize("name", PIQA)
def test_the_official_generator_s_folders_are_found(
    name: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (example,) = SUITES[name].example
    place = tmp_path / folder / f"global_piqa_{name.split('-')[2]}" / "eng_latn.jsonl"
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps(example.record) + "\n")
    monkeypatch.setenv("ANTLM_BENCH_DATA", str(tmp_path))
    suite = loader.load_suite(name, allow_incomplete=True)
    assert [item.id for item in suite.items] == [example.id]
    assert any(note.startswith("incomplete: 1 of ") for note in suite.notes)


def test_ewok_2025_and_2026_ask_different_questions_of_one_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ewok_filtered").mkdir()
    row = {"Domain": "x", "ContextType": "a", "ContextDiff": "b", "TargetDiff": "c"}
    row |= {"Context1": "C one.", "Context2": "C two.", "Target1": "T one.", "Target2": "T two."}
    spec = SUITES["ewok-2025"]
    assert spec.data
    for file in spec.data.files:
        row["Domain"] = file.removesuffix(".jsonl")
        (tmp_path / "ewok_filtered" / file).write_text(json.dumps(row) + "\n")
    monkeypatch.setenv("ANTLM_BENCH_DATA", str(tmp_path))
    old, new = (loader.load_suite(f"ewok-{year}", allow_incomplete=True) for year in (2025, 2026))
    assert [o.text for o in old.items[0].options] == ["C one. T one.", "C one. T two."]
    assert [o.text for o in new.items[0].options] == ["C one. T one.", "C two. T one."]
    assert {o.span for item in (*old.items, *new.items) for o in item.options} == {(6, 13)}
    assert old.digest != new.digest and [i.id for i in old.items] == [i.id for i in new.items]
