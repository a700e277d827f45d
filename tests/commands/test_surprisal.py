"""`surprisal` from argv to a table: forms of the result, what has no number, what is refused."""

from __future__ import annotations

import csv
import inspect
import math
import re
import shutil
from pathlib import Path
from typing import get_args

import pytest

from antlm_bench import Scorer
from antlm_bench.cli.app import run
from antlm_bench.cli.surprisal import surprisal_command
from antlm_bench.commands import surprisal as command
from antlm_bench.commands.surprisal import surprisal
from antlm_bench.commands.surprisal_rows import UNITS_BY_BASE
from antlm_bench.errors import BenchError, DataError, MethodNotSupported, UsageError
from antlm_bench.scoring.word_corrections import CORRECTIONS
from antlm_bench.suites.stimuli import UNITS

STIMULI = """item,condition,region,text,freq
1,short,np,the cat,3
1,short,verb,sleeps,4
1,long,np,the old cat,3
1,long,verb,sleeps,4
"""


@pytest.fixture
def stimuli(tmp_path: Path) -> Path:
    path = tmp_path / "stimuli.csv"
    path.write_text(STIMULI)
    return path


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


def test_a_row_per_word_ready_for_r(make_checkpoint, stimuli, tmp_path, capsys):
    out = tmp_path / "results" / "long.csv"
    model = str(make_checkpoint("causal", adds=True))
    assert run(["surprisal", "--model", model, "--in", str(stimuli), "--out", str(out)]) == 0
    rows = table(out)
    assert list(rows[0]) == [
        "item", "condition", "region", "word_index", "word", "freq", "n_tokens", "surprisal_bits",
    ]  # fmt: skip
    assert [row["word"] for row in rows] == ["the", "cat", "sleeps", "the", "old", "cat", "sleeps"]
    assert rows[0]["surprisal_bits"] == rows[3]["surprisal_bits"] and all(
        float(r["surprisal_bits"]) > 0 for r in rows
    )
    assert "7 of 2 texts" in capsys.readouterr().out


@pytest.mark.long
def test_words_regions_and_sentences_add_up(make_checkpoint, stimuli, tmp_path):
    model = str(make_checkpoint("causal", adds=True))
    made = {
        by: surprisal(model, stimuli, tmp_path / f"{by}.csv", by=by).rows
        for by in ("word", "region", "sentence")
    }

    def total(by, condition):
        return sum(row["surprisal_bits"] for row in made[by] if row["condition"] == condition)

    for condition in ("short", "long"):
        assert total("word", condition) == pytest.approx(total("sentence", condition), abs=1e-4)
        assert total("region", condition) == pytest.approx(total("sentence", condition), abs=1e-4)
    assert [row["region_text"] for row in made["region"]] == [
        "the cat",
        "sleeps",
        "the old cat",
        "sleeps",
    ]
    assert [row["freq"] for row in made["sentence"]] == [None, None]


@pytest.mark.long
def test_every_ending_holds_the_same_table(make_checkpoint, stimuli, tmp_path):
    import pyarrow.parquet

    model = str(make_checkpoint("causal", adds=True))
    for ending in (".csv", ".tsv", ".parquet"):
        surprisal(model, stimuli, tmp_path / f"t{ending}")
    parquet = pyarrow.parquet.read_table(tmp_path / "t.parquet").to_pylist()
    assert table(tmp_path / "t.csv") == table(tmp_path / "t.tsv")
    for a, b in zip(table(tmp_path / "t.csv"), parquet, strict=True):
        assert {k: str(v) for k, v in b.items() if k != "surprisal_bits"} == {
            k: v for k, v in a.items() if k != "surprisal_bits"
        }
        assert float(a["surprisal_bits"]) == pytest.approx(b["surprisal_bits"], abs=1e-6)


@pytest.mark.long
def test_bits_are_nats_over_log_2_and_files_larger_than_a_block_lose_nothing(
    make_checkpoint, tmp_path, monkeypatch
):
    path = tmp_path / "s.txt"
    path.write_text("\n".join(f"the cat sees {n} dogs." for n in range(30)))
    model = str(make_checkpoint("causal", adds=True))
    whole = surprisal(model, path, tmp_path / "a.csv").rows

    monkeypatch.setattr(command, "MAX_BLOCK_CHARACTERS", 70)
    parts = surprisal(model, path, tmp_path / "b.csv").rows
    assert [r["word"] for r in parts] == [r["word"] for r in whole] and len(whole) == 150
    assert [r["surprisal_bits"] for r in parts] == pytest.approx(
        [r["surprisal_bits"] for r in whole], abs=1e-4
    )
    from antlm_bench.checkpoints import open_checkpoint
    from antlm_bench.scoring.methods import METHODS
    from antlm_bench.scoring.surprisal import span_logprobs
    from antlm_bench.types import Option

    text = "the cat sees 0 dogs."
    logp = span_logprobs(open_checkpoint(model), [Option(text, (7, 12))], METHODS["causal"]).logp[0]
    assert whole[2]["surprisal_bits"] == pytest.approx(-logp / math.log(2), abs=1e-4)


@pytest.mark.long
def test_words_without_a_number_are_rows_counted_and_never_guessed(
    make_checkpoint, stimuli, tmp_path, capsys
):
    model, out = str(make_checkpoint("causal", adds=False)), tmp_path / "t.csv"
    line = [
        "surprisal",
        "--model",
        model,
        "--in",
        str(stimuli),
        "--out",
        str(out),
        "--bos",
        "never",
    ]
    assert run(line) == 0
    assert [row["surprisal_bits"] == "" for row in table(out)] == [
        True,
        False,
        False,
        True,
        False,
        False,
        False,
    ]
    assert "2: nothing stands before their first token" in capsys.readouterr().out
    found = surprisal(model, stimuli, out, max_length=4, long_texts="leave")
    assert (found.too_long, found.unscored) == (4, 0)
    assert [row["surprisal_bits"] is None for row in found.rows] == [False] * 3 + [True] * 4
    assert [row["n_tokens"] for row in found.rows[3:]] == [None] * 4


@pytest.mark.long
def test_the_correction_moves_words_but_hardly_their_sum(make_checkpoint, stimuli, tmp_path):
    model = str(make_checkpoint("causal", adds=True))
    plain, corrected = (
        surprisal(model, stimuli, tmp_path / "t.csv", bow_correction=on).rows
        for on in (False, True)
    )
    assert all(
        a["surprisal_bits"] != b["surprisal_bits"] for a, b in zip(plain, corrected, strict=True)
    )
    ends = surprisal(model, stimuli, tmp_path / "t.csv", by="sentence", bow_correction=True).rows
    assert sum(r["surprisal_bits"] for r in corrected[:3]) == pytest.approx(
        ends[0]["surprisal_bits"], abs=1e-4
    )


def test_what_cannot_be_is_refused_and_nothing_is_written(make_checkpoint, stimuli, tmp_path):
    causal, masked = (
        str(make_checkpoint("causal", adds=True)),
        str(make_checkpoint("masked", adds=True)),
    )
    out = tmp_path / "t.csv"
    with pytest.raises(UsageError, match="what kind of file"):
        surprisal("absent", stimuli, tmp_path / "t.xlsx")
    with pytest.raises(MethodNotSupported, match="computed for causal, not for mlm"):
        surprisal(masked, stimuli, out, method="mlm", bow_correction=True)
    with pytest.raises(MethodNotSupported, match="product of two predictions"):
        surprisal(causal, stimuli, out, method="fused")
    with pytest.raises(DataError, match="no unit can be scored"):
        surprisal(causal, stimuli, out, max_length=2, long_texts="leave")
    with pytest.raises(BenchError):
        surprisal(str(tmp_path / "absent"), stimuli, out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("content", "code", "wrong"),
    [
        ("a,b\n1,2\n", 3, "the column 'sentence' is missing"),
        ("sentence\n", 3, "0 texts"),
        ("sentence\n  \n", 3, "empty"),
    ],
)
def test_bad_files_end_with_a_message_and_a_code(
    make_checkpoint, tmp_path, capsys, content, code, wrong
):
    path = tmp_path / "bad.csv"
    path.write_text(content)
    assert (
        run(["surprisal", "--model", "absent", "--in", str(path), "--out", str(tmp_path / "o.csv")])
        == code
    )
    assert wrong in " ".join(capsys.readouterr().err.split())


@pytest.mark.long
def test_float64_is_a_dtype_of_the_command(make_checkpoint, stimuli, tmp_path):
    folder, bits = make_checkpoint("causal"), {}
    for dtype in ("float32", "float64"):
        out = tmp_path / f"{dtype}.csv"
        argv = ["surprisal", "--model", str(folder), "--in", str(stimuli), "--out", str(out)]
        assert run([*argv, "--dtype", dtype, "--device", "cpu"]) == 0
        bits[dtype] = [float(row["surprisal_bits"]) for row in table(out)]
    assert bits["float64"] == pytest.approx(bits["float32"], abs=1e-4)
    assert bits["float64"] != bits["float32"]


@pytest.mark.parametrize("text", ["", " ", "\n\t"])
def test_empty_texts_are_refused_by_index(make_checkpoint, text):
    with pytest.raises(DataError, match=r"stimuli\[1\]: the text is empty"):
        surprisal(make_checkpoint("causal"), ["the cat", text])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("in.csv", 'sentence\n" "\n', "in.csv:2: 'sentence' is empty"),
        ("in.csv", 'region,text\nnp," "\n', "in.csv:2: 'text' is empty"),
        ("in.jsonl", '{"sentence": ""}\n', "in.jsonl:1: 'sentence' is empty"),
        ("in.txt", " \n\n", "in.txt: 0 texts"),
        (
            "in.json",
            '{"items": [{"item_number": 1, "conditions": [{"condition_name": "a", "regions": '
            '[{"region_number": 1, "content": " "}]}]}], "predictions": []}',
            "in.json: items[0].conditions[0]: the text is empty",
        ),
    ],
)
def test_empty_texts_of_files_are_refused(
    make_checkpoint, tmp_path, capsys, name, content, message
):
    path = tmp_path / name
    path.write_text(content)
    model = str(make_checkpoint("causal"))
    argv = ["surprisal", "--model", model, "--in", str(path), "--out", str(tmp_path / "out.csv")]
    assert run(argv) == 3
    assert message in capsys.readouterr().err.replace("\n", "")


def test_a_model_object_is_to_be_wrapped():
    with pytest.raises(UsageError, match=r"hint: wrap a model in memory: Scorer\(model, token"):
        surprisal(object(), ["the cat"])


@pytest.mark.long
def test_several_models_fill_one_table(make_checkpoint, stimuli, tmp_path, capsys):
    causal, masked = make_checkpoint("causal"), make_checkpoint("masked")
    out = tmp_path / "out.csv"
    argv = ["surprisal", "--model", str(causal), "--model", str(masked), "--in", str(stimuli)]
    assert run([*argv, "--out", str(out), "--by", "sentence"]) == 0
    rows = table(out)
    assert list(rows[0])[:3] == ["model", "item", "condition"]
    assert [row["model"] for row in rows] == [causal.name] * 2 + [masked.name] * 2
    alone = surprisal(masked, stimuli, by="sentence").rows
    assert "model" not in alone[0]
    assert [float(row["surprisal_bits"]) for row in rows[2:]] == pytest.approx(
        [row["surprisal_bits"] for row in alone], abs=1e-6
    )
    printed = capsys.readouterr().out
    assert "causal, mlm" in printed and f"{causal.name}, {masked.name}" in printed


@pytest.mark.long
def test_models_of_one_name_are_called_by_their_paths(make_checkpoint, tmp_path):
    paths = [tmp_path / seed / "last" for seed in ("seed_1", "seed_2")]
    for path in paths:
        shutil.copytree(make_checkpoint("causal"), path)
    result = surprisal(paths, ["the cat"])
    assert result.models == tuple(map(str, paths))
    assert {row["model"] for row in result.rows} == set(result.models)


def test_a_failing_model_is_named_before_anything_is_written(
    make_checkpoint, stimuli, tmp_path, monkeypatch
):
    out, absent = tmp_path / "out.csv", str(tmp_path / "absent")
    monkeypatch.setattr(command, "open_checkpoint", lambda *_: pytest.fail("opened a model"))
    with pytest.raises(BenchError, match=re.escape(absent)):
        surprisal([make_checkpoint("causal"), absent], stimuli, out)
    assert not out.exists()


@pytest.mark.long
def test_an_error_of_one_of_several_models_has_its_name(make_checkpoint, stimuli):
    causal, masked = make_checkpoint("causal"), make_checkpoint("masked")
    with pytest.raises(MethodNotSupported, match=f"{masked.name}.*computed for causal"):
        surprisal([causal, masked], stimuli, correction="oh-schuler")
    with pytest.raises(UsageError, match="0 models"):
        surprisal([], stimuli)


@pytest.mark.long
def test_a_row_per_token_with_added_columns(make_checkpoint, stimuli, tmp_path):
    out = tmp_path / "tokens.csv"
    argv = ["surprisal", "--model", str(make_checkpoint("causal")), "--in", str(stimuli)]
    argv += ["--out", str(out), "--by", "token", "--add", "rank,entropy,top-1", "--base", "10"]
    assert run(argv) == 0
    rows = table(out)
    assert list(rows[0]) == [
        "item", "condition", "region", "word_index", "word", "freq", "token_index", "token",
        "surprisal_hartleys", "rank", "entropy_hartleys", "top_1", "top_1_probability",
    ]  # fmt: skip
    short = [row for row in rows if row["condition"] == "short"]
    assert "".join(row["token"] for row in short) == " the cat sleeps"
    assert [row["token_index"] for row in short] == [str(n + 1) for n in range(len(short))]


@pytest.mark.long
@pytest.mark.parametrize(
    ("base", "column", "nats"),
    [
        ("2", "surprisal_bits", math.log(2)),
        ("e", "surprisal_nats", 1),
        (10, "surprisal_hartleys", math.log(10)),
    ],
)
def test_the_column_names_the_unit(make_checkpoint, base, column, nats):
    model = Scorer(make_checkpoint("causal"))
    [row] = surprisal(model, ["the cat"], by="sentence", base=base, add="entropy").rows
    assert row[column] * nats == pytest.approx(-model.logprobs(["the cat"])[0], abs=1e-5)
    entropy = row[column.replace("surprisal", "entropy")]
    [plain] = surprisal(model, ["the cat"], by="sentence", add="entropy").rows
    assert entropy * nats == pytest.approx(plain["entropy_bits"] * math.log(2), abs=1e-9)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_a_prefix_is_read_and_not_scored(make_checkpoint, tmp_path, kind):
    model = Scorer(make_checkpoint(kind))
    path = tmp_path / "in.csv"
    path.write_text("sentence,prefix\nsees some dogs,the cat\nno dogs,\nsleeps,the boy \n")
    rows = surprisal(model, path).rows
    assert [row["word"] for row in rows] == ["sees", "some", "dogs", "no", "dogs", "sleeps"]
    assert [row["word_index"] for row in rows] == [1, 2, 3, 1, 2, 1]
    assert [row["prefix"] for row in rows] == ["the cat"] * 3 + [""] * 2 + ["the boy "]
    whole_texts = ["the cat sees some dogs", "no dogs", "the boy sleeps"]
    whole = [row["surprisal_bits"] for row in surprisal(model, whole_texts).rows]
    expected = whole[2:5] + whole[5:7] + whole[9:]
    assert [row["surprisal_bits"] for row in rows] == pytest.approx(expected, abs=1e-4)
    [*given] = surprisal(model, ["sees some dogs"], context="the cat").rows
    assert [row["surprisal_bits"] for row in given] == pytest.approx(whole[2:5], abs=1e-4)
    tokens = surprisal(model, ["dogs"], context="the ca", join="", by="token").rows
    assert "".join(row["token"] for row in tokens).endswith("dogs")
    assert tokens[0]["token_index"] == 1


@pytest.mark.long
def test_a_long_text_is_read_in_windows_and_this_is_said(make_checkpoint, tmp_path, capsys):
    source, out = tmp_path / "story.txt", tmp_path / "out.csv"
    source.write_text("the cat sees some dogs near the old house " * 40 + "\nno dogs")
    argv = ["surprisal", "--model", str(make_checkpoint("causal")), "--in", str(source)]
    assert run([*argv, "--out", str(out)]) == 0
    rows = table(out)
    assert len(rows) == 362 and all(row["surprisal_bits"] for row in rows)
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 text longer than the model, read in overlapping windows" in printed
    assert "each later one at least 32" in printed
    assert run([*argv, "--out", str(out), "--long-texts", "leave"]) == 0
    assert "360: their text does not fit" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"add": ["entropie"]}, "unknown column 'entropie'"),
        ({"add": ["top-0"]}, "unknown column 'top-0'"),
        ({"base": "3"}, "--base: '3' is unknown"),
        ({"long_texts": "cut"}, "--long-texts: 'cut' is unknown"),
        ({"correction": "bow"}, "unknown correction 'bow'"),
        ({"correction": "oh-schuler", "bow_correction": True}, "short for --correction"),
        ({"context": 3}, "context"),
    ],
)
def test_wrong_options_are_refused_before_a_model_is_opened(options, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        surprisal("absent", ["the cat"], **options)


def test_columns_that_the_result_has_are_refused(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("sentence,rank,prefix\nthe cat,3,no\n")
    with pytest.raises(DataError, match="the result has a column 'rank', too"):
        surprisal("absent", path, add=["rank"])
    path.write_text("sentence,model,prefix\nthe cat,x,no\n")
    with pytest.raises(DataError, match="the result of several models has a column 'model'"):
        surprisal(["absent", "absent too"], path)
    with pytest.raises(UsageError, match="--context: the stimuli have a column `prefix`"):
        surprisal("absent", path, context="the")


def test_regions_of_a_text_share_one_prefix(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("item,region,text,prefix\n1,a,the,no\n1,b,cat,some\n")
    with pytest.raises(DataError, match=r"in.csv:3: item '1' has two prefixes: 'no', 'some'"):
        surprisal("absent", path)


def test_the_command_line_offers_every_correction_and_unit():
    parameters = inspect.signature(surprisal_command).parameters

    def list_choices(name: str) -> list[str]:
        values = get_args(get_args(parameters[name].annotation)[0])
        return list(get_args(values[0]) or values)

    assert list_choices("correction") == ["none", *CORRECTIONS]
    assert list_choices("by") == list(UNITS)
    assert list_choices("base") == list(UNITS_BY_BASE)
    assert list_choices("long_texts") == list(command.LONG_TEXTS)
