"""Stimuli with a critical word: shipped declarations, users' TOMLs and options, SAP's sample."""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path

import pytest
from local_server import serve_folder

from antlm_bench.cli.app import run
from antlm_bench.declarations import list_declarations
from antlm_bench.errors import BenchError, DataError, UsageError
from antlm_bench.suites.stimuli import Stimulus
from antlm_bench.suites.stimuli_spec import (
    StimuliLayout,
    StimuliSpec,
    build_stimuli,
    load_stimuli,
    read_stimuli_rows,
)
from antlm_bench.suites.task_types import read_declaration_file

DECLARED = {
    name: spec
    for name, path in list_declarations("tasks").items()
    if isinstance(spec := read_declaration_file(path), StimuliSpec)
}
GARDEN_PATHS = """item,condition,disambPositionUnamb,unambiguous,disambPositionAmb,ambiguous
1,NPS_UAMB,5,The dog saw that cats slept soundly.,4,The dog saw cats slept soundly.
2,MVRR_UAMB,6,The cat that was fed\\' purred.,4,The cat fed\\' purred.
"""


def regions(stimulus: Stimulus) -> list[str]:
    return [
        stimulus.text[segment.start : segment.end].strip()
        for segment in stimulus.segments
        if segment.region
    ]


@pytest.mark.parametrize("name", DECLARED)
def test_an_example_becomes_its_texts_and_regions(name: str) -> None:
    spec = DECLARED[name]
    assert spec.example
    for example in spec.example:
        stimuli = build_stimuli(spec, iter([(1, dict(example.record))]), "example")
        assert tuple(stimulus.text for stimulus in stimuli) == example.texts
        assert tuple(s.condition for s in stimuli if s.condition) == example.conditions
        assert tuple(tuple(regions(stimulus)) for stimulus in stimuli) == example.regions


@pytest.mark.parametrize("name", DECLARED)
def test_shipped_stimuli_are_pinned(name: str) -> None:
    spec = DECLARED[name]
    assert spec.licence and spec.citation
    assert all(file.sha256 for file in spec.data.files.values())
    assert all(re.search(r"/[0-9a-f]{40}/", source.http or "") for source in spec.data.sources)


def test_the_catalog_lists_them_with_their_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"sap-classicgp", "natural-stories"} <= set(DECLARED)
    assert run(["list", "--json"]) == 0
    rows = {row["suite"]: row for row in json.loads(capsys.readouterr().out)["table"]["rows"]}
    assert rows["sap-classicgp"]["by"] == "surprisal" and rows["sap-classicgp"]["items"] == 144
    assert run(["show", "sap-classicgp"]) == 0
    assert "surprisal --model CKPT --in sap-classicgp" in capsys.readouterr().out


def test_stimuli_are_not_scored_and_suites_are_no_stimuli(capsys) -> None:
    assert run(["score", "--model", "x", "--suite", "sap-classicgp"]) == 2
    assert "antlm-bench surprisal" in capsys.readouterr().err
    with pytest.raises(UsageError, match="'blimp' is a suite that is scored, not a set of stimuli"):
        load_stimuli("blimp")


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Serve a folder on this machine; yield (folder, URL)."""
    monkeypatch.delenv("ANTLM_BENCH_DATA", raising=False)
    monkeypatch.setenv("ANTLM_BENCH_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "served"
    folder.mkdir()
    with serve_folder(folder, monkeypatch) as url:
        yield folder, url


def write_toml(tmp_path: Path, url: str, data: str, texts: int) -> Path:
    """Write sap-classicgp's TOML for another file of its columns."""
    toml = list_declarations("tasks")["sap-classicgp"].read_text(encoding="utf-8")
    toml = re.sub(r'http = "[^"]*"', f'http = "{url}/{{file}}"', toml)
    toml = re.sub("[0-9a-f]{64}", hashlib.sha256(data.encode()).hexdigest(), toml)
    path = tmp_path / "mine.toml"
    path.write_text(
        toml.replace("texts = 144", f"texts = {texts}").replace("sap-classicgp", "mine")
    )
    return path


def test_a_declared_file_is_fetched_and_read(served, tmp_path: Path) -> None:
    folder, url = served
    (folder / "items_ClassicGP.csv").write_text(GARDEN_PATHS)
    path = write_toml(tmp_path, url, GARDEN_PATHS, 4)
    stimuli = load_stimuli(str(path))
    assert [(s.item, s.condition) for s in stimuli] == [
        ("1", "ambiguous"),
        ("1", "unambiguous"),
        ("2", "ambiguous"),
        ("2", "unambiguous"),
    ]
    assert [regions(s) for s in stimuli] == [
        ["cats", "slept", "soundly."],
        ["cats", "slept", "soundly."],
        ["purred."],
        ["purred."],
    ]
    assert stimuli[2].text == "The cat fed' purred."
    assert {s.segments[0].extra_columns["construction"] for s in stimuli} == {"NP/S", "MV/RR"}


def test_a_file_with_other_bytes_or_rows_is_refused(served, tmp_path: Path) -> None:
    folder, url = served
    (folder / "items_ClassicGP.csv").write_text(GARDEN_PATHS)
    with pytest.raises(DataError, match="wrong hash"):
        load_stimuli(str(write_toml(tmp_path, url, "other", 4)))
    with pytest.raises(DataError, match="4 texts, but mine has 6"):
        load_stimuli(str(write_toml(tmp_path, url, GARDEN_PATHS, 6)))


def test_words_of_a_story_become_one_text() -> None:
    rows = [("If", "1", "1"), ("you", "2", "1"), ("go,", "3", "1"), ("A", "1", "2")]
    numbered = enumerate(({"word": w, "zone": z, "item": i} for w, z, i in rows), start=2)
    first, second = build_stimuli(DECLARED["natural-stories"], numbered, "stories")
    assert (first.text, second.text) == ("If you go,", "A")
    assert [segment.region for segment in first.segments] == ["1", "2", "3"]
    assert regions(first) == ["If", "you", "go,"]


def test_rows_of_a_story_must_follow_each_other() -> None:
    rows = [("1", "a"), ("2", "b"), ("1", "c")]
    numbered = enumerate(({"word": w, "zone": "1", "item": i} for i, w in rows), start=2)
    with pytest.raises(DataError, match=r"stories:4: item '1' has other rows above"):
        build_stimuli(DECLARED["natural-stories"], numbered, "stories")


WORDS_TOML = """
kind = "stimuli"
name = "stories"
version = "1"
title = "Stories"
format = "csv"
item = "item"
word = { column = "word", region = "zone" }
copy = { class = "pos" }
rename.class = { NN = "noun" }
data = { files = ["stories.csv"] }
"""


def test_copied_values_of_words_are_renamed(tmp_path: Path) -> None:
    (tmp_path / "stories.csv").write_text("item,zone,word,pos\n1,1,The,DT\n1,2,cat,NN\n")
    (tmp_path / "stories.toml").write_text(WORDS_TOML)
    [stimulus] = load_stimuli(str(tmp_path / "stories.toml"))
    assert [s.extra_columns["class"] for s in stimulus.segments] == ["DT", "noun"]


def test_stimuli_of_words_have_no_condition(tmp_path: Path) -> None:
    (tmp_path / "stories.toml").write_text(f'condition = "pos"\n{WORDS_TOML}')
    with pytest.raises(BenchError, match="`condition` has no meaning"):
        load_stimuli(str(tmp_path / "stories.toml"))


# ---- a user's file, by options


BOTH = StimuliLayout(("ambiguous", "unambiguous"), ("disambPositionAmb", "disambPositionUnamb"))


def test_options_read_a_text_per_condition(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text(GARDEN_PATHS)
    stimuli = load_stimuli(path, layout=BOTH)
    assert [s.condition for s in stimuli] == ["ambiguous", "unambiguous"] * 2
    assert regions(stimuli[1]) == ["cats", "slept", "soundly."]
    assert stimuli[0].segments[0].extra_columns == {"row_condition": "NPS_UAMB"}


def test_one_position_serves_all_texts_and_spillover_is_chosen() -> None:
    rows = [{"a": "one two three four", "b": "uno dos tres quattro", "at": 2}]
    stimuli = read_stimuli_rows(rows, layout=StimuliLayout(("a", "b"), ("at",), spillover=1))
    assert [regions(s) for s in stimuli] == [["two", "three"], ["dos", "tres"]]
    [region, *_] = [s.region for s in stimuli[0].segments if s.region]
    assert (region, "".join(stimuli[0].text[s.start : s.end] for s in stimuli[0].segments)) == (
        "critical",
        "one two three four",
    )


def test_a_sentence_per_row_keeps_its_condition() -> None:
    rows = [{"Sentence": "one two", "at": 1.0, "condition": "x", "item": 3, "n": 5}]
    [stimulus] = read_stimuli_rows(rows, {"sentence": "Sentence"}, StimuliLayout((), ("at",)))
    assert (stimulus.item, stimulus.condition) == ("3", "x")
    assert regions(stimulus) == ["one", "two"]
    assert stimulus.segments[0].extra_columns == {"n": "5"}


@pytest.mark.parametrize(
    ("row", "columns", "layout", "error", "message"),
    [
        ({"at": "x"}, {}, BOTH, DataError, "the field 'ambiguous' is missing"),
        ({"a": "b c", "at": "x"}, {}, StimuliLayout(("a",), ("at",)), DataError, "is 'x', not the"),
        ({"a": "b c", "at": "3"}, {}, StimuliLayout(("a",), ("at",)), DataError, "3 of 2 words"),
        ({"a": "b c", "at": "9" * 5000}, {}, StimuliLayout(("a",), ("at",)), DataError, "not the"),
        ({"a": "b c", "at": "0"}, {}, StimuliLayout(("a",), ("at",)), DataError, "0 of 2 words"),
        ({"a": " ", "at": "1"}, {}, StimuliLayout(("a",), ("at",)), DataError, "'a' is empty"),
        ({}, {}, StimuliLayout(("a", "b", "c"), ("x", "y")), UsageError, "2 columns of positions"),
        ({}, {}, StimuliLayout(("a", "a")), UsageError, "the column 'a' is named twice"),
        ({"a": "b c", "at": "1.5"}, {}, StimuliLayout(("a",), ("at",)), DataError, "is '1.5'"),
        ({}, {"sentence": "x"}, BOTH, UsageError, "`sentence` is named, too"),
        ({}, {"region": "x"}, BOTH, UsageError, "unknown column 'region'"),
        ({}, {}, StimuliLayout((), (), 1), UsageError, "there is no critical word"),
    ],
)
def test_wrong_layouts_are_said(row, columns, layout, error, message) -> None:
    with pytest.raises(error) as raised:
        read_stimuli_rows([row], columns, layout)
    assert message in str(raised.value)
    assert isinstance(raised.value, BenchError) and raised.value.exit_code in (2, 3)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[[text]]", "[[texts]]", "unknown key 'texts'"),
        (
            '"unambiguous"\nposition',
            '"ambiguous"\nposition',
            "two .* have the condition 'ambiguous'",
        ),
        ('condition = "unambiguous"\n', "", "either all \\[\\[text\\]\\] tables have a"),
        ('construction = "condition"', 'word = "condition"', "`copy` must not contain 'word'"),
        ("[rename.construction]", "[rename.cnstr]", "`rename` names 'cnstr'"),
    ],
)
def test_wrong_declarations_are_said(tmp_path: Path, old: str, new: str, message: str) -> None:
    toml = list_declarations("tasks")["sap-classicgp"].read_text(encoding="utf-8")
    path = tmp_path / "mine.toml"
    path.write_text(toml.replace(old, new))
    with pytest.raises(BenchError, match=message):
        load_stimuli(str(path))


# ---- the sample of the SAP benchmark


@pytest.mark.long
def test_saps_garden_path_effects_equal_a_plain_loop(
    make_checkpoint, data_root: Path, tmp_path: Path, capsys
) -> None:
    """60 rows, 120 texts: one forward pass each, the effects by pandas."""
    import pandas as pd
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    sample = data_root / "strangers" / "sap" / "items_ClassicGP.csv"
    if not sample.is_file():
        pytest.skip("needs strangers/sap in the real data")
    path = str(make_checkpoint("causal", adds=True, max_position_embeddings=256))
    argv = ["effects", str(sample), "--model", path, "--conditions", "ambiguous,unambiguous"]
    argv += ["--position", "disambPositionAmb,disambPositionUnamb", "--baseline", "unambiguous"]
    assert run([*argv, "--per", "row_condition", "--json"]) == 0
    got = {
        (row["row_condition"], row["region"]): row["value"]
        for row in json.loads(capsys.readouterr().out)["table"]["rows"]
        if row["kind"] == "effect"
    }
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path).eval()

    def word_bits(text: str) -> list[float]:
        encoded = tokenizer(text, return_offsets_mapping=True)
        ids = torch.tensor(encoded["input_ids"])
        with torch.no_grad():
            logprobs = model(ids[None]).logits[0].log_softmax(-1)
        bits = [0.0] * len(text.split())
        for index, (start, end) in enumerate(encoded["offset_mapping"]):
            if end > start:
                # the space before a word belongs to it, also where it is a token of its own
                word = len((text[:end] + "x" * text[start:end].isspace()).split()) - 1
                bits[word] -= float(logprobs[index - 1, ids[index]]) / math.log(2)
        return bits

    frame = pd.read_csv(sample)
    expected = {}
    for shift, region in enumerate(("critical", "critical+1", "critical+2")):
        frame["effect"] = [
            word_bits(row.ambiguous)[row.disambPositionAmb - 1 + shift]
            - word_bits(row.unambiguous)[row.disambPositionUnamb - 1 + shift]
            for row in frame.itertuples()
        ]
        for condition, mean in frame.groupby("condition").effect.mean().items():
            expected[condition, region] = mean
    assert got == pytest.approx(expected, abs=1e-3)


def test_values_of_words_are_renamed_as_those_of_texts() -> None:
    tables = {
        "kind": "stimuli", "name": "mine", "version": "1", "title": "mine", "format": "csv",
        "item": "story", "word": {"column": "word", "region": "zone"},
        "copy": {"genre": "type"}, "rename": {"genre": {"n": "novel"}},
        "data": {"where": ["{file}"], "files": {"words.csv": {}}},
    }  # fmt: skip
    rows = [{"story": "1", "word": word, "zone": "a", "type": "n"} for word in ("Cats", "sleep.")]

    [stimulus] = build_stimuli(
        StimuliSpec.model_validate(tables), iter(enumerate(rows, start=2)), "words.csv"
    )

    assert stimulus.text == "Cats sleep."
    assert [segment.extra_columns for segment in stimulus.segments] == [{"genre": "novel"}] * 2
