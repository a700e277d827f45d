"""`surprisal` from argv to a table: forms of the result, what has no number, what is refused."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from antlm_bench.cli.app import run
from antlm_bench.commands import surprisal as command
from antlm_bench.commands.surprisal import surprisal
from antlm_bench.errors import BenchError, DataError, MethodNotSupported, UsageError

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
def test_bits_are_nats_over_log_2_and_files_larger_than_a_chunk_lose_nothing(
    make_checkpoint, tmp_path, monkeypatch
):
    path = tmp_path / "s.txt"
    path.write_text("\n".join(f"the cat sees {n} dogs." for n in range(30)))
    model = str(make_checkpoint("causal", adds=True))
    whole = surprisal(model, path, tmp_path / "a.csv").rows

    def cut(items, methods):
        del methods
        return [items[at : at + 7] for at in range(0, len(items), 7)]

    monkeypatch.setattr(command, "iter_chunks", cut)
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
    found = surprisal(model, stimuli, out, options=command.OpenOptions(max_length=4))
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
    with pytest.raises(MethodNotSupported, match="mlm sees the next word"):
        surprisal(masked, stimuli, out, method="mlm", bow_correction=True)
    with pytest.raises(MethodNotSupported, match="product of two predictions"):
        surprisal(causal, stimuli, out, method="fused")
    with pytest.raises(DataError, match="no unit can be scored"):
        surprisal(causal, stimuli, out, options=command.OpenOptions(max_length=2))
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
