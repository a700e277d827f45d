"""Judgements of single sentences from the file to the comparison, beside plain loops."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from tiny_models import WORDS

from antlm_bench import compare, merge, runs, score
from antlm_bench.commands.export import export
from antlm_bench.commands.plan import plan_score
from antlm_bench.commands.power import PowerOptions, plan_power
from antlm_bench.commands.requested_suites import find_smallest_limit
from antlm_bench.commands.score_options import ScoreOptions
from antlm_bench.errors import DataError, DeclarationError, IncompleteError, UsageError
from antlm_bench.metrics import METRICS
from antlm_bench.suites.loader import load_suite
from antlm_bench.types import Item, Run

Make = Callable[..., Path]
DECLARATION = """
kind = "acceptability"
name = "toy"
version = "1"
title = "toy"
licence = "CC0"
citation = "none"
{more}
[data]
where = ["{{file}}"]
files = {{ "toy.tsv" = {{}} }}
"""


def write_suite(folder: Path, rows: list[tuple[str, str]], more: str = "") -> str:
    lines = ["label\tsentence", *(f"{label}\t{sentence}" for label, sentence in rows)]
    (folder / "toy.tsv").write_text("\n".join(lines), encoding="utf-8")
    path = folder / "toy.toml"
    path.write_text(DECLARATION.format(more=more), encoding="utf-8")
    return str(path)


def draw_sentences(n: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, rng.integers(3, 8))) + "." for _ in range(n)]


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    return draw_sentences(24)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, sentences: list[str]) -> Path:
    """A suite of judgements, and a text."""
    folder = tmp_path_factory.mktemp("judgements")
    write_suite(folder, [(str(number % 3 % 2), text) for number, text in enumerate(sentences)])
    (folder / "text.txt").write_text("\n".join(draw_sentences(9)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(folder: Path, make_checkpoint: Make) -> Run:
    """A run with a unigram model."""
    [run] = score(
        str(make_checkpoint()), str(folder / "toy.toml"), out=folder / "run",
        unigrams=str(folder / "text.txt"),
    )  # fmt: skip
    return run


def test_log_probabilities_are_those_of_a_plain_loop(
    run: Run, make_checkpoint: Make, sentences: list[str]
) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(make_checkpoint()).eval()
    tokenizer = AutoTokenizer.from_pretrained(make_checkpoint())
    expected = []
    for sentence in sentences:
        ids = tokenizer(sentence, add_special_tokens=False)["input_ids"]
        rows = torch.tensor([[tokenizer.bos_token_id, *ids]])
        with torch.no_grad():
            logprobs = model(rows).logits.log_softmax(-1)[0]
        expected.append(sum(float(logprobs[i, token]) for i, token in enumerate(ids)))

    predictions = runs.read_predictions(run.path, run.cells[0])

    assert predictions.first("scores") == pytest.approx(expected, abs=1e-4)
    assert predictions.gold.tolist() == [number % 3 % 2 for number in range(24)]


def test_unigram_scores_count_the_tokens_of_the_text(
    run: Run, folder: Path, make_checkpoint: Make, sentences: list[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(make_checkpoint())
    vocabulary = AutoModelForCausalLM.from_pretrained(make_checkpoint()).config.vocab_size
    lines = (folder / "text.txt").read_text(encoding="utf-8").split("\n")
    after = run.manifest.model["specials"]["causal"].partition("...")[2].split()
    encoded = [tokenizer(line, add_special_tokens=False)["input_ids"] for line in lines]
    counts = Counter(token for line in encoded for token in line)
    counts.update(dict.fromkeys(tokenizer.convert_tokens_to_ids(after), len(lines)))
    total = sum(counts.values())
    expected = [
        sum(math.log((counts[t] + 1) / (total + vocabulary)) for t in ids)
        for ids in (tokenizer(s, add_special_tokens=False)["input_ids"] for s in sentences)
    ]

    predictions = runs.read_predictions(run.path, run.cells[0])

    assert predictions.unigram_scores == pytest.approx(expected)
    assert "auc-slor" in run.cells[0].summary.views


def test_scores_are_those_of_minicons(run: Run, folder: Path, make_checkpoint: Make) -> None:
    pytest.importorskip("minicons")

    [other] = score(
        str(make_checkpoint()), str(folder / "toy.toml"), out=folder / "minicons", engine="minicons"
    )

    ours, theirs = (runs.read_predictions(r.path, r.cells[0]).first("scores") for r in (run, other))
    assert ours == pytest.approx(theirs, abs=1e-4)


def test_the_text_is_part_of_the_key_and_named_in_a_comparison(
    run: Run, folder: Path, make_checkpoint: Make
) -> None:
    (folder / "copy.txt").write_bytes((folder / "text.txt").read_bytes())

    def find_key(**settings: Any) -> str:
        options = {"out": folder / "keys", **settings}
        return score(str(make_checkpoint()), str(folder / "toy.toml"), **options)[0].cells[0].key

    assert find_key(unigrams=str(folder / "copy.txt")) == run.cells[0].key
    assert find_key() != run.cells[0].key
    [[comparison]] = [each.comparisons for each in compare(folder / "keys", run.path)]
    assert any("text of the unigram model" in note for note in comparison.notes)


def test_training_counts_the_corpus_beside_the_checkpoint(
    folder: Path, make_checkpoint: Make, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(make_checkpoint())
    lines = (folder / "text.txt").read_text(encoding="utf-8").split("\n")
    encoded = [
        [tokenizer.bos_token_id, *tokenizer(line, add_special_tokens=False)["input_ids"]]
        for line in lines
    ]
    shutil.copytree(make_checkpoint(), tmp_path / "main")
    (tmp_path / "corpus").mkdir()
    np.save(tmp_path / "corpus" / "tokens.npy", np.concatenate(encoded).astype(np.uint16))
    np.save(tmp_path / "corpus" / "lines.npy", np.cumsum([0, *map(len, encoded)]))
    (tmp_path / "corpus" / "digest").write_text("abc")

    scores = []
    for text in ("training", str(folder / "text.txt")):
        [run] = score(
            str(tmp_path / "main"), str(folder / "toy.toml"), out=tmp_path / text[-3:],
            unigrams=text,
        )  # fmt: skip
        scores.append(runs.read_predictions(run.path, run.cells[0]).unigram_scores)

    assert scores[0] == pytest.approx(scores[1])


def test_shards_of_judgements_become_the_same_run(
    run: Run, folder: Path, make_checkpoint: Make, tmp_path: Path
) -> None:
    for index in (1, 2):
        score(
            str(make_checkpoint()), str(folder / "toy.toml"), out=tmp_path / f"shard{index}",
            shard=f"{index}/2", unigrams=str(folder / "text.txt"),
        )  # fmt: skip

    merged = merge([tmp_path / "shard1", tmp_path / "shard2"], tmp_path / "merged")

    assert merged.cells[0].digest == run.cells[0].digest
    assert merged.cells[0].summary == run.cells[0].summary


def test_the_table_of_items_has_labels_and_both_scores(run: Run, tmp_path: Path) -> None:
    export([run.path], "csv", tmp_path / "items.csv")

    header, first, *_ = (tmp_path / "items.csv").read_text().splitlines()
    row = dict(zip(header.split(","), first.split(","), strict=True))
    predictions = runs.read_predictions(run.path, run.cells[0])
    assert (row["gold"], float(row["score"])) == ("0", predictions.first("scores")[0])
    assert predictions.unigram_scores is not None
    assert float(row["score_other"]) == predictions.unigram_scores[0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"unigrams": "training"}, "does not lie in a folder that antlm-bench train wrote"),
        ({"unigrams": "no.txt"}, "no such file or folder"),
        ({"unigrams": "blank.txt"}, "the text has no tokens"),
        ({"unigrams": "text.txt", "engine": "minicons"}, "does not tell which tokens"),
        ({"unigrams": "training", "tokenizer": "."}, "tokens of another tokenizer"),
        ({"precision": "adaptive"}, "needs exact probabilities"),
    ],
)
def test_options_that_cannot_score_judgements_are_refused(
    settings: dict[str, str], words: str, folder: Path, make_checkpoint: Make,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(folder)
    (folder / "blank.txt").write_text("\n\n")
    if "tokenizer" in settings:
        settings = settings | {"tokenizer": str(make_checkpoint())}

    with pytest.raises((UsageError, DataError), match=words):
        score(str(make_checkpoint()), "toy.toml", out=tmp_path / "run", **settings)
    assert not (tmp_path / "run" / "run.json").exists()


def test_unigrams_need_a_suite_that_uses_them(folder: Path) -> None:
    with pytest.raises(UsageError, match="none of these suites uses a unigram model: nano"):
        score("no-checkpoint", "nano", unigrams=str(folder / "text.txt"))


def test_slor_without_unigrams_is_refused(make_checkpoint: Make, tmp_path: Path) -> None:
    suite = write_suite(tmp_path, [("1", "the cat."), ("0", "cat the.")], 'reduction = "slor"')

    with pytest.raises(UsageError, match="measured by SLOR"):
        score(str(make_checkpoint()), suite, out=tmp_path / "run")


def test_labels_may_be_named(tmp_path: Path) -> None:
    more = '[item]\nacceptable = ["g", ""]\nunacceptable = ["*", "??"]'
    rows = [("g", "a cat."), ("*", "cat a."), ("", "a dog."), ("??", "dog a.")]

    suite = load_suite(write_suite(tmp_path, rows, more))

    assert [item.gold for item in suite.items] == [1, 0, 1, 0]
    assert [item.options[0].text for item in suite.items] == [sentence for _, sentence in rows]


def test_another_label_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'label' must be one of '1', '0', not '2'") as error:
        load_suite(write_suite(tmp_path, [("1", "a cat."), ("2", "cat a.")]))
    assert error.value.location == f"{tmp_path / 'toy.tsv'}:3"


def test_the_power_of_judgements_is_not_planned(folder: Path) -> None:
    with pytest.raises(UsageError, match="its items are not right or wrong"):
        plan_power(str(folder / "toy.toml"), PowerOptions())


def test_a_sample_of_jcola_is_read_as_it_is(data_root: Path, tmp_path: Path) -> None:
    sample = data_root / "strangers" / "jcola" / "in_domain_valid-v1.0.tsv"
    if not sample.exists():
        pytest.skip("needs the sample of JCoLA")
    shutil.copy(sample, tmp_path / "toy.tsv")
    (tmp_path / "toy.toml").write_text(DECLARATION.format(more='[item]\nid = "{uid}"'))

    suite = load_suite(str(tmp_path / "toy.toml"))

    lines = [line.split("\t") for line in sample.read_text(encoding="utf-8").splitlines()[1:]]
    assert [item.id for item in suite.items] == [line[0] for line in lines]
    assert [item.gold for item in suite.items] == [int(line[2]) for line in lines]
    assert [item.options[0].text for item in suite.items] == [line[4] for line in lines]


def test_digest_of_a_text_is_its_content(run: Run, folder: Path) -> None:
    content = hashlib.sha256((folder / "text.txt").read_bytes()).digest()

    assert run.cells[0].settings["unigrams"] == hashlib.sha256(b".txt" + content).hexdigest()


@pytest.mark.parametrize(
    ("name", "lines", "settings"),
    [
        ("a.tsv", ["sentence\tlabel", "a cat.\t1", "cat a.\t0"], {}),
        (
            "a.csv",
            ["text,ok", "a cat.,yes", "cat a.,?"],
            {"columns": {"label": "ok"}, "good": "yes"},
        ),
        ("a.txt", ["a cat.", "*cat a."], {}),
        ("a.txt", ["True\ta cat.", "False\tcat a."], {}),
    ],
)
def test_a_users_file_is_read_as_judgements(
    name: str, lines: list[str], settings: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")

    suite = load_suite(str(tmp_path / name), layout="judgements", **settings)

    assert [(item.options[0].text, item.gold) for item in suite.items] == [
        ("a cat.", 1),
        ("cat a.", 0),
    ]
    assert (suite.task_type, suite.metric, suite.reduction) == ("acceptability", "auc", "penalised")


def test_a_users_file_of_judgements_is_scored_with_unigrams(
    run: Run, folder: Path, make_checkpoint: Make, tmp_path: Path
) -> None:
    [own] = score(
        str(make_checkpoint()), str(folder / "toy.tsv"), out=tmp_path, layout="judgements",
        unigrams=str(folder / "text.txt"),
    )  # fmt: skip

    assert own.cells[0].summary.headline == run.cells[0].summary.headline
    assert own.cells[0].summary.views == run.cells[0].summary.views


def test_a_layout_of_pairs_is_none_of_judgements(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, [("1", "a cat.")])
    path = tmp_path / "toy.toml"
    path.write_text(path.read_text() + 'layout = "labelled"\n', encoding="utf-8")

    with pytest.raises(DeclarationError, match="the layout 'labelled' makes pairs"):
        load_suite(suite)


@pytest.mark.parametrize(("unigrams", "num_done"), [(True, 1), (False, 0)])
def test_a_plan_knows_which_text_a_result_has(
    unigrams: bool, num_done: int, run: Run, folder: Path, make_checkpoint: Make
) -> None:
    options = ScoreOptions(unigrams=str(folder / "text.txt") if unigrams else None)

    plan = plan_score([str(make_checkpoint())], [str(folder / "toy.toml")], [], options, run.path)

    assert len(plan.done) == num_done


def test_groups_have_an_auc_and_a_difference_each(make_checkpoint: Make, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = [(str(rng.integers(2)), text) for text in draw_sentences(60)]
    more = 'groups = ["last"]\n[labels]\nlast = "{group}"'
    suite = write_suite(tmp_path, rows, more)
    lines = (tmp_path / "toy.tsv").read_text().splitlines()
    groups = ["group", *("ab"[number % 2] for number in range(60))]
    text = "\n".join(f"{line}\t{group}" for line, group in zip(lines, groups, strict=True))
    (tmp_path / "toy.tsv").write_text(text)
    runs_of_seeds = [
        score(str(make_checkpoint(seed=seed)), suite, out=tmp_path / str(seed))[0]
        for seed in (0, 1)
    ]

    [[comparison]] = [each.comparisons for each in compare(*(r.path for r in runs_of_seeds))]

    labels = np.array([label == "1" for label, _ in rows])
    differences = {
        "toy": np.ones(60, bool),
        "a": np.arange(60) % 2 == 0,
        "b": np.arange(60) % 2 == 1,
    }
    for difference in (comparison.headline, *comparison.groups):
        members, aucs = differences[difference.name], []
        for each in runs_of_seeds:
            predictions = runs.read_predictions(each.path, each.cells[0])
            lengths = predictions.first("tokens")
            values = predictions.first("scores") / ((5 + lengths) / 6) ** 0.8
            aucs.append(roc_auc_score(labels[members], values[members]))
        assert (difference.a, difference.b) == pytest.approx(tuple(aucs))
        assert difference.low <= difference.value <= difference.high
        assert difference.p is not None


def test_damaged_tokens_of_a_training_text_are_one_clear_error(
    folder: Path, make_checkpoint: Make, tmp_path: Path
) -> None:
    shutil.copytree(make_checkpoint(), tmp_path / "main")
    (tmp_path / "corpus").mkdir()
    for name in ("tokens.npy", "lines.npy", "digest"):
        (tmp_path / "corpus" / name).write_text("damaged")

    with pytest.raises(DataError, match="tokens of the training text cannot be read"):
        score(
            str(tmp_path / "main"), str(folder / "toy.toml"), out=tmp_path / "run",
            unigrams="training",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("labels", "limit", "location", "words", "hint"),
    [
        ("1111", None, "toy.toml", "all 4 sentences are acceptable", "add such items to the file"),
        ("0000", 2, "toy.toml", "all 4 sentences are unacceptable", "add such items to the file"),
        ("1110", 2, "toy.toml, --limit 2", "all 2 sentences are acceptable", "raise it to 4"),
        ("01", 1, "toy.toml, --limit 1", "the only sentence is unacceptable", "raise it to 2"),
    ],
)
def test_one_class_is_refused_before_anything_is_scored(
    labels: str, limit: int | None, location: str, words: str, hint: str,
    make_checkpoint: Make, tmp_path: Path,
) -> None:  # fmt: skip
    suite = write_suite(tmp_path, list(zip(labels, draw_sentences(len(labels)), strict=True)))

    with pytest.raises(DataError, match=f"100 AUC is undefined.*: {words}") as error:
        score(str(make_checkpoint()), suite, out=tmp_path / "run", limit=limit)

    assert (error.value.location, error.value.exit_code) == (str(tmp_path / location), 3)
    assert hint in error.value.hint
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_limit_of_one_class_leaves_the_other_suites(
    make_checkpoint: Make, tmp_path: Path
) -> None:
    suite = write_suite(tmp_path, list(zip("110", draw_sentences(3), strict=True)))

    with pytest.raises(IncompleteError, match="100 AUC is undefined with this limit") as error:
        score(str(make_checkpoint()), [suite, "nano"], out=tmp_path / "run", limit=2)

    assert [cell.suite for run in error.value.runs for cell in run] == ["nano"]
    assert error.value.exit_code == 5


def test_the_smallest_limit_counts_items_of_each_group() -> None:
    items = [
        Item(str(i), (), gold, {"group": group})
        for i, (gold, group) in enumerate([(1, "a"), (1, "a"), (1, "b"), (1, "b"), (0, "b")])
    ]

    assert find_smallest_limit(items, "group", METRICS["auc"]) == 3
    assert find_smallest_limit(items, None, METRICS["auc"]) == 5


def test_the_smallest_limit_of_a_correlation_has_three_items() -> None:
    items = [Item(str(i), (), gold, {}) for i, gold in enumerate([0.1, 0.2, 0.2, 0.3])]

    assert find_smallest_limit(items, None, METRICS["spearman"]) == 3
