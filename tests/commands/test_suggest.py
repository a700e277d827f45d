"""`suggest`: what a file is, which sentence is right, and a command and a TOML that do what they
say.
"""

from __future__ import annotations

import csv
import json
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from score_helpers import sum_logprobs_by_hand
from typer.main import get_command

from antlm_bench import load_suite, score
from antlm_bench.cli.app import build_app, run
from antlm_bench.cli.shared_options import PAIR_FORMAT_OPTIONS, _parse_pair_format
from antlm_bench.cli.surprisal import build_layout
from antlm_bench.commands.suggest import Suggestion, suggest
from antlm_bench.errors import BenchError, DataError, UsageError
from antlm_bench.suites.stimuli import read_stimuli, split_into_units
from antlm_bench.suites.stimuli_spec import load_stimuli
from antlm_bench.suites.task_types import TASK_TYPES, Suite
from antlm_bench.suites.templates import drop_single_clusters

Make = Callable[..., Path]
Pairs = Sequence[tuple[str, str]]
COMMANDS: Any = get_command(build_app()).commands  # type: ignore[attr-defined]


def write_file(folder: Path, name: str, content: str) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return str(path)


def parse_command(command: str, name: str) -> dict[str, Any]:
    """Return the options of a command, as the command line parses them."""
    program, verb, *words = shlex.split(command)
    assert (program, verb) == ("antlm-bench", name)
    return dict(COMMANDS[name].make_context(name, words).params)


def load_command(command: str) -> Suite:
    """Load the suite of a printed command with the settings of its flags."""
    options = parse_command(command, "score")
    assert list(options["model"]) == ["CKPT"]
    (suite,) = options["suite"]
    settings = _parse_pair_format({name: options[name] for name in PAIR_FORMAT_OPTIONS})
    return load_suite(suite, **settings)


def load_toml(suggestion: Suggestion, folder: Path) -> Suite:
    """Load the printed TOML from a folder with a link to the data beside it."""
    toml = Path(suggestion.toml_file)
    for neighbour in toml.parent.resolve().iterdir():
        if not (folder / neighbour.name).exists():
            (folder / neighbour.name).symlink_to(neighbour)
    return load_suite(write_file(folder, toml.name, suggestion.toml))


def list_pairs(suite: Suite) -> list[tuple[str, str]]:
    return [(item.options[0].text, item.options[1].text) for item in suite.items]


def check_pairs(suggestion: Suggestion, pairs: Pairs, folder: Path) -> None:
    """Check that the command and the TOML load the same items, which are these pairs."""
    folder.mkdir(exist_ok=True)
    by_command, by_toml = load_command(suggestion.command), load_toml(suggestion, folder)
    assert list_pairs(by_command) == list(pairs)
    assert describe_items(by_toml) == describe_items(by_command)
    assert (by_toml.name, by_toml.digest) == (by_command.name, by_command.digest)
    assert (suggestion.right, suggestion.wrong) == pairs[0]
    assert suggestion.items == f"{len(pairs)} pair" + "s" * (len(pairs) > 1)


def describe_items(suite: Suite) -> list[tuple[Any, ...]]:
    """Return all that decides scores and intervals. A cluster of one item is none."""
    clusters = drop_single_clusters([item.cluster for item in suite.items])
    return [
        (item.id, item.options, item.gold, item.labels, cluster)
        for item, cluster in zip(suite.items, clusters, strict=True)
    ]


def swap_pairs(pairs: Pairs) -> list[tuple[str, str]]:
    return [(bad, good) for good, bad in pairs]


# ---- files of other authors, each with an independent reader


@pytest.fixture(scope="session")
def strangers() -> Path:
    """Folder with samples of other authors' suites; skips the test without it."""
    data_dir = Path(
        os.environ.get("ANTLM_BENCH_DATA") or Path(__file__).parents[3] / "shared" / "data"
    )
    if not (data_dir / "strangers").is_dir():
        pytest.skip("needs samples of other authors' suites: ANTLM_BENCH_DATA/strangers")
    return data_dir / "strangers"


def read_zorro(path: Path) -> Pairs:
    lines = path.read_text(encoding="utf-8").split("\n")
    return [(lines[n + 1], lines[n]) for n in range(0, len(lines) - 1, 2)]


def read_clams(path: Path) -> Pairs:
    pairs, right = [], ""
    for line in path.read_text(encoding="utf-8").splitlines():
        label, sentence = line.split("\t")
        right = sentence if label == "True" else right
        pairs += [(right, sentence)] if label == "False" else []
    return pairs


def read_sling(path: Path) -> Pairs:
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [(row["sentence_good"], row["sentence_bad"]) for row in rows]


def read_rublimp(path: Path) -> Pairs:
    with path.open(encoding="utf-8", newline="") as file:
        return [(row["source_sentence"], row["target_sentence"]) for row in csv.DictReader(file)]


READERS: dict[str, Callable[[Path], Pairs]] = {
    "clams": read_clams,
    "rublimp": read_rublimp,
    "sling": read_sling,
    "zorro": read_zorro,
}
SAYS_WHICH = ("clams", "sling")
"""Suites whose files say which sentence is right."""


@pytest.mark.parametrize("name", READERS)
def test_pairs_of_other_authors_are_read_as_they_are(
    strangers: Path, tmp_path: Path, name: str
) -> None:
    for path in sorted((strangers / name).iterdir()):
        pairs = READERS[name](path)
        assert len(pairs) >= 40
        suggestions = suggest(str(path))
        if name in SAYS_WHICH:
            assert ["say" in each.which for each in suggestions] == [True]
            check_pairs(suggestions[0], pairs, tmp_path / path.stem)
            continue
        assert ["does not say" in each.which for each in suggestions] == [True, True]
        # Zorro's wrong sentence stands first, RuBLiMP's right one.
        right, wrong = suggestions if name == "rublimp" else reversed(suggestions)
        check_pairs(right, pairs, tmp_path / path.stem)
        check_pairs(wrong, swap_pairs(pairs), tmp_path / path.stem)


@pytest.mark.parametrize("name", READERS)
def test_folders_of_other_authors_have_a_paradigm_per_file(
    strangers: Path, tmp_path: Path, name: str
) -> None:
    paths = sorted((strangers / name).iterdir())
    suggestions = suggest(str(strangers / name))
    suggestion = suggestions[-1] if name == "zorro" else suggestions[0]
    check_pairs(suggestion, [pair for path in paths for pair in READERS[name](path)], tmp_path)
    suite = load_command(suggestion.command)
    assert suite.groups[-1] == "paradigm"
    names = [path.name.rpartition(".")[0] for path in paths]
    assert list(dict.fromkeys(item.labels["paradigm"] for item in suite.items)) == names


@pytest.mark.parametrize("name", READERS)
def test_scores_of_other_authors_pairs_equal_a_plain_loop(
    strangers: Path, tmp_path: Path, make_checkpoint: Make, name: str
) -> None:
    path = min((strangers / name).iterdir())
    all_pairs = list(READERS[name](path))
    pairs = [all_pairs[0], all_pairs[-1]]
    suggestions = suggest(str(path))
    suggestion = suggestions[-1] if name == "zorro" else suggestions[0]
    options = parse_command(suggestion.command, "score")
    model = make_checkpoint("causal", max_position_embeddings=256)
    run_dir = tmp_path / "run"
    pair_format = _parse_pair_format({each: options[each] for each in PAIR_FORMAT_OPTIONS})
    (result,) = score(str(model), str(path), out=run_dir, **pair_format)
    scores = dict(zip(*read_scores(result), strict=True))
    expected = [
        [sum_logprobs_by_hand(model, text, masked=False, specials="own")[0] for text in pair]
        for pair in pairs
    ]
    items = [item.id for item in load_command(suggestion.command).items]
    for item, values in zip((items[0], items[-1]), expected, strict=True):
        assert scores[item] == pytest.approx(values, abs=2e-4)


def read_scores(run: Any) -> tuple[list[str], list[list[float]]]:
    """Return the ids and scores of the only cell of a run."""
    from antlm_bench import runs

    predictions = runs.read_predictions(run.path, run.cells[0])
    return list(predictions.ids), [list(each) for each in predictions.iter_options("scores")]


def test_agreement_items_are_a_long_table(strangers: Path, tmp_path: Path) -> None:
    path = strangers / "sap" / "items_Agreement.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = {(row["item"], row["condition"]): row["Sentence"] for row in csv.DictReader(file)}
    items = dict.fromkeys(item for item, _ in rows)
    pairs = [(rows[item, "AGREE"], rows[item, "UNAGREE"]) for item in items]
    unagree, agree = suggest(str(path))
    check_pairs(agree, pairs, tmp_path)
    check_pairs(unagree, swap_pairs(pairs), tmp_path)


def test_garden_paths_are_read_word_by_word(strangers: Path) -> None:
    path = strangers / "sap" / "items_ClassicGP.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    (suggestion,) = suggest(str(path))
    first, second = suggestion.command.split("\n")
    options = parse_command(first, "surprisal")
    layout = build_layout(options["conditions"], options["position"], options["spillover"])
    stimuli = load_stimuli(options["source"], {}, layout)
    columns = ("ambiguous", "unambiguous")
    assert [each.text for each in stimuli] == [row[name] for row in rows for name in columns]
    units = split_into_units(stimuli[:2], "word")
    assert [u.row["word"] for u in units if u.row["region"] == "critical"] == ["deserved"] * 2
    effects = parse_command(second, "effects")
    assert (effects["baseline"], effects["per"]) == (["unambiguous"], ["row_condition"])


def test_three_texts_and_a_position_are_conditions(tmp_path: Path) -> None:
    texts = "the cat sleeps,the cats sleeps,the old cat sleeps"
    rows = f"{texts},3\n{texts.replace('cat', 'dog')},3\n"
    path = write_file(tmp_path, "a.csv", f"b,a,c,position\n{rows}")
    (suggestion,) = suggest(path)
    first, second = suggestion.command.split("\n")
    options = parse_command(first, "surprisal")
    assert (options["conditions"], options["position"]) == (["b,a,c"], ["position"])
    assert "words.csv" in parse_command(second, "effects").values()


def test_lines_with_labels_without_pairs_are_judgements(tmp_path: Path) -> None:
    lines = "0\tWho a dog.\n1\tThe cat sleeps.\n1\tNobody came home.\n0\tSaw what she.\n"
    (suggestion,) = suggest(write_file(tmp_path, "a.txt", lines))
    suite = load_command(suggestion.command)
    assert [item.gold for item in suite.items] == [0, 1, 1, 0]


def test_judgements_of_jcola_are_no_pairs(strangers: Path, tmp_path: Path) -> None:
    path = strangers / "jcola" / "in_domain_valid-v1.0.tsv"
    (suggestion,) = suggest(str(path))
    assert suggestion.what == "single sentences with judgements"
    assert 'acceptable = ["1"]' in suggestion.toml
    assert len(load_command(suggestion.command).items) == 119
    if "acceptability" not in TASK_TYPES:
        pytest.skip("suites of single judgements are not registered")
    suite = load_toml(suggestion, tmp_path)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    judgements = [(item.options[0].text, item.gold) for item in suite.items]
    assert judgements == [(row["sentence"], int(row["label"])) for row in rows]


def test_a_folder_of_syntaxgym_suites_is_one_suite(strangers: Path, tmp_path: Path) -> None:
    (suggestion,) = suggest(str(strangers / "syntaxgym"))
    suite = load_toml(suggestion, tmp_path)
    names = sorted(path.stem for path in (strangers / "syntaxgym").iterdir())
    assert suite.macro == ("suite",)
    assert sorted({item.labels["suite"] for item in suite.items}) == names


def test_syntaxgym_suites_are_scored_as_they_are(strangers: Path) -> None:
    for path in sorted((strangers / "syntaxgym").iterdir()):
        (suggestion,) = suggest(str(path))
        assert "SyntaxGym" in suggestion.what
        assert load_command(suggestion.command).task_type == "syntaxgym"


# ---- small files

LONG = "item,condition,sentence\n"
LONG += "".join(f"{n},plus,The {noun}s sleep here.\n" for n, noun in enumerate(("cat", "dog")))
LONG += "".join(f"{n},minus,The {noun}s sleeps here.\n" for n, noun in enumerate(("cat", "dog")))
LONG_PAIRS = [(f"The {noun}s sleep here.", f"The {noun}s sleeps here.") for noun in ("cat", "dog")]
SMALL: dict[str, tuple[str, str, list[Pairs]]] = {
    "named.csv": (
        "good,bad\nThe cat sleeps.,The cat sleep.\n",
        "say it",
        [[("The cat sleeps.", "The cat sleep.")]],
    ),
    "grammatical.csv": (
        "id,is_grammatical_text,ungrammatical_text\n1,The cat sleeps.,The cat sleep.\n",
        "say it",
        [[("The cat sleeps.", "The cat sleep.")]],
    ),
    "comma.csv": (
        '"right, first","wrong, second"\nThe cat sleeps.,The cat sleep.\n',
        "say it",
        [[("The cat sleeps.", "The cat sleep.")]],
    ),
    "star.txt": (
        "The cat sleeps.\n*The cat sleep.\n*The cat slept it.\n",
        "say it",
        [[("The cat sleeps.", "The cat sleep."), ("The cat sleeps.", "The cat slept it.")]],
    ),
    "rows.csv": (
        "label,text\n1,The cat sleeps.\n0,The cat sleep.\n1,A dog saw it.\n0,A dog see it.\n",
        "say it",
        [[("The cat sleeps.", "The cat sleep."), ("A dog saw it.", "A dog see it.")]],
    ),
    "long.csv": (LONG, "does not say", [LONG_PAIRS, swap_pairs(LONG_PAIRS)]),
    "labels.csv": (
        LONG.replace("plus", "good").replace("minus", "bad"),
        "say it",
        [LONG_PAIRS],
    ),
}


@pytest.mark.parametrize("name", SMALL)
def test_small_files_of_pairs_are_recognised(tmp_path: Path, name: str) -> None:
    content, which, pairs_of_choices = SMALL[name]
    suggestions = suggest(write_file(tmp_path, f"data/{name}", content))
    assert [which in each.which for each in suggestions] == [True] * len(pairs_of_choices)
    for suggestion, pairs in zip(suggestions, pairs_of_choices, strict=True):
        if suggestion.command.endswith(".toml"):  # a flag cannot name a column with a comma
            assert list_pairs(load_toml(suggestion, tmp_path)) == pairs
        else:
            check_pairs(suggestion, pairs, tmp_path / "toml")


@pytest.mark.parametrize(
    ("name", "content", "what", "command"),
    [
        (
            "regions.csv",
            "item,condition,region,text\n1,a,np,The cat\n1,a,vp,sleeps.\n",
            "stimuli with regions, a row per region",
            "surprisal",
        ),
        (
            "plain.txt",
            "The cat sleeps.\nWho saw what?\nNobody else came home.\n",
            "sentences, neither in pairs nor with judgements",
            "surprisal",
        ),
        (
            "plain.csv",
            "n,stimulus\n1,The cat sleeps.\n2,Who saw what?\n3,Nobody else came home.\n",
            "sentences, neither in pairs nor with judgements",
            "surprisal",
        ),
    ],
)
def test_small_files_of_stimuli_are_recognised(
    tmp_path: Path, name: str, content: str, what: str, command: str
) -> None:
    (suggestion,) = suggest(write_file(tmp_path, name, content))
    assert suggestion.what == what
    options = parse_command(suggestion.command, command)
    columns = dict(each.split("=") for each in options["columns"] or ())
    assert len(read_stimuli(Path(options["source"]), columns)) in (1, 3)


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.toml", 'kind = "suite"\n', UsageError, "a TOML is a declaration already"),
        ("a.csv", "", DataError, "0 rows"),
        ("a.csv", "good;bad\nx;y\n", DataError, "separated by ';'"),
        ("a.tsv", "True\tThe cat sleeps.\nFalse\tThe cat sleep.\n", DataError, "no names of"),
        ("a.csv", "n,m\n1,2\n3,4\n", DataError, "no column holds sentences"),
        ("a.txt", "ok\tThe cat sleeps.\n?\tThe cat sleep.\n", DataError, "'ok', '\\?' do not say"),
        ("a.xlsx", "x", DataError, "unknown file format"),
        ("x/.a.txt", "x", DataError, "there is no file of sentences in it"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(
    tmp_path: Path, name: str, content: str, error: type[Exception], message: str
) -> None:
    ref = write_file(tmp_path, name, content)
    with pytest.raises(error, match=message):
        suggest(str(Path(ref).parent) if name.startswith("x/") else ref)


def test_a_line_that_breaks_the_pattern_is_reported(tmp_path: Path) -> None:
    lines = "True\tThe cat sleeps.\nFalse\tThe cat sleep.\n" * 5_000
    ref = write_file(tmp_path, "a.txt", f"{lines}perhaps\tThe cat slept.\n")
    (suggestion,) = suggest(ref)
    assert f"{ref}:10001: the label 'perhaps'" in suggestion.items


def test_the_printed_command_scores_a_file(
    tmp_path: Path, make_checkpoint: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    ref = write_file(tmp_path, "my pairs.csv", LONG)
    assert run(["suggest", ref, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["table"]["rows"]
    first, _ = (row["value"] for row in rows if row["name"] == "command")
    _, *words = shlex.split(first)
    words[words.index("CKPT")] = str(make_checkpoint("causal"))
    assert run([*words, "--out", str(tmp_path / "run"), "--json"]) == 0
    assert "read with the layout long; 'plus' is right" in capsys.readouterr().out


def test_a_long_command_is_broken_so_that_it_can_be_copied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ref = write_file(tmp_path, "my pairs of sentences.csv", LONG)
    assert run(["suggest", ref]) == 0
    printed = capsys.readouterr().out.partition(" command ")[2].partition(" or write a TOML ")[0]
    assert " \\\n" in printed
    words = shlex.split(printed.replace("\\\n", " "))
    assert words == shlex.split(suggest(ref)[0].command)


# ---- any file

CELL = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    ["The cat sleeps.", "The cat sleep.", "True", "*", "0", "a,b", "item", "region", "text", ""]
)
VALUE = CELL | st.none() | st.booleans() | st.integers(0, 3) | st.lists(CELL, max_size=2)
FILES = st.one_of(
    st.tuples(st.just("a.txt"), st.lists(CELL, max_size=6).map("\n".join)),
    st.tuples(
        st.sampled_from(["a.csv", "a.tsv"]),
        st.lists(st.lists(CELL, min_size=2, max_size=3).map("\t".join), max_size=5).map("\n".join),
    ),
    st.tuples(
        st.just("a.jsonl"),
        st.lists(st.dictionaries(CELL, VALUE, min_size=1, max_size=4), max_size=5).map(
            lambda rows: "\n".join(map(json.dumps, rows))
        ),
    ),
    st.tuples(st.just("a.json"), CELL),
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(file=FILES)
def test_any_file_is_described_or_one_error(tmp_path: Path, file: tuple[str, str]) -> None:
    name, content = file
    ref = write_file(tmp_path, name, content)
    try:
        suggestions = suggest(ref)
    except BenchError as error:
        assert error.location.startswith(ref)
        return
    for suggestion in suggestions:
        if suggestion.right and suggestion.command.split()[1] == "score":
            assert list_pairs(load_toml(suggestion, tmp_path))[0][0] == suggestion.right
