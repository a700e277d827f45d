"""Conventions end to end: what an accuracy must be read with, and the peers' choices reproduced by
plain loops.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ltg_models
import pytest
from prediction_rows import PredictionRow, read_rows
from score_helpers import (
    make_agreement_rows,
    sum_logprobs_by_hand,
    write_pairs,
    write_sentence_pairs,
)

from antlm_bench import score
from antlm_bench.errors import DataError, UsageError
from antlm_bench.types import Cell

Make = Callable[..., Path]
PAIRS = [
    ("the cat sleeps near the house.", "the cat sleep near the house."),
    ("no dogs have ever seen the boy", "some dogs have ever seen the boy, not a girl"),
    ("who sees himself?", "what does every old girl see that the boys never see?"),
]


def ask(folder: Path, suite: Path, out: Path, **options: Any) -> tuple[Cell, list[PredictionRow]]:
    [found] = score(folder, suite, out=out, device="cpu", **options)
    [cell] = found
    return cell, read_rows(found.path, cell)


# ---- flags


@pytest.mark.long
def test_identical_pairs_tie_and_are_counted(make_checkpoint: Make, tmp_path: Path) -> None:
    suite = write_sentence_pairs(tmp_path / "x.csv", *[("the cat sleeps", "the cat sleeps")] * 6)
    values = {}
    for ties in ("half", "strict", "first", "random"):
        cell, predictions = ask(make_checkpoint(), suite, tmp_path / "run", ties=ties)
        assert {p.flags for p in predictions} == {("identical",)}
        assert cell.summary.headline.flags == {"identical": 6, "tie": 6}
        values[ties] = cell.summary.headline.value
    draws = [
        int.from_bytes(hashlib.blake2b(f"x_{n}".encode()).digest()[:8], "big") % 2 for n in range(6)
    ]
    assert values == {
        "half": 0.5,
        "strict": 0.0,
        "first": 1.0,
        "random": pytest.approx(draws.count(0) / 6),
    }


@pytest.mark.long
def test_pairs_whose_difference_is_never_scored_are_blind(
    make_checkpoint: Make, tmp_path: Path
) -> None:
    suite = write_sentence_pairs(
        tmp_path / "x.csv", ("cat sleeps", "dog sleeps"), ("cat sleeps", "cat sleep")
    )
    folder = make_checkpoint("causal", adds=False)
    cell, (first, second) = ask(folder, suite, tmp_path / "never", bos="never")
    assert (first.flags, second.flags) == (("blind",), ()) and cell.summary.headline.flags == {
        "blind": 1
    }
    assert first.tokens == (
        1,
        1,
    )  # a number that answers another question: P(sleeps) after either noun
    cell, predictions = ask(folder, suite, tmp_path / "auto")
    assert [p.flags for p in predictions] == [(), ()] and not cell.summary.headline.flags


@pytest.mark.long
def test_unknown_words_are_counted(make_checkpoint: Make, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = shutil.copytree(make_checkpoint(), tmp_path / "model")
    words = Tokenizer(
        models.WordLevel({"<unk>": 4, "<s>": 1, "the": 5, "cat": 6, "cats": 7}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<s>"
    ).save_pretrained(folder)
    suite = write_sentence_pairs(
        tmp_path / "x.csv", ("the cat", "the cats"), ("the wug", "the cat"), ("the cat", "the wugs")
    )
    cell, predictions = ask(folder, suite, tmp_path / "run")
    assert [p.flags for p in predictions] == [(), ("unk",), ("unk",)]
    assert cell.summary.headline.flags == {"unk": 2}


@pytest.mark.long
def test_what_does_not_fit_is_named_counts_as_wrong_and_is_never_cut(
    make_checkpoint: Make, tmp_path: Path
) -> None:
    fits, long = ("the cat sleeps", "the cat sleep"), ("the cat " * 40, "the cat sleep")
    ordinary, _ = ask(
        make_checkpoint(),
        write_sentence_pairs(tmp_path / "y.csv", fits),
        tmp_path / "ordinary",
        ties="first",
    )
    suite = write_sentence_pairs(tmp_path / "x.csv", fits, long, tuple(reversed(long)))
    cell, predictions = ask(make_checkpoint(), suite, tmp_path / "run", ties="first")
    assert [p.flags for p in predictions] == [(), ("too-long",), ("too-long",)]
    assert predictions[1].tokens == (0, 0)
    assert cell.summary.headline.flags == {"too-long": 2} and cell.summary.headline.n == 3
    assert cell.summary.headline.value == pytest.approx(ordinary.summary.headline.value / 3)


def test_a_text_of_which_nothing_can_be_scored_is_an_error_that_names_it(
    make_checkpoint: Make, tmp_path: Path
) -> None:
    suite = write_sentence_pairs(tmp_path / "x.csv", ("the cat", "cats"))
    with pytest.raises(DataError, match="no token of option 2 can be scored") as caught:
        ask(make_checkpoint(), suite, tmp_path / "run", bos="never")
    assert caught.value.location == "item x_0" and "--bos" in caught.value.hint
    assert not list(tmp_path.rglob("run.json"))


# ---- the peers' bundles


@pytest.mark.long
@pytest.mark.parametrize(
    ("compat", "adds", "specials", "ties"),
    [
        ("lm-eval", False, "bos", "first"),
        ("lm-eval", True, "own", "first"),
        ("babylm-2024", False, "bos", "first"),
        ("babylm-2025", False, "none", "first"),
        ("babylm-2025", True, "own", "first"),
        ("babylm-2026", False, "none", "random"),
        ("minicons", False, "none", "half"),
        ("minicons", True, "own", "half"),
    ],
)
def test_causal_bundles_are_the_peers_choices(
    make_checkpoint: Make, tmp_path: Path, compat: str, adds: bool, specials: str, ties: str
) -> None:
    folder, suite = (
        make_checkpoint("causal", adds=adds),
        write_sentence_pairs(tmp_path / "x.csv", *PAIRS),
    )
    cell, predictions = ask(folder, suite, tmp_path / "run", compat=compat)
    assert (cell.settings["ties"], cell.settings["compat"]) == (ties, compat)
    before = " " if compat in ("lm-eval", "babylm-2024") else ""
    for prediction, pair in zip(predictions, PAIRS, strict=True):
        found = (
            sum_logprobs_by_hand(folder, before + text, masked=False, specials=specials)
            for text in pair
        )
        sums, counts = zip(*found, strict=True)
        assert prediction.scores == pytest.approx(sums, abs=1e-3) and prediction.tokens == counts
        decides = (
            [s / n for s, n in zip(sums, counts, strict=True)] if compat == "minicons" else sums
        )
        assert prediction.pred == max((0, 1), key=lambda k: decides[k])


@pytest.mark.long
def test_the_mean_per_token_decides_where_the_peer_takes_it(
    make_checkpoint: Make, tmp_path: Path
) -> None:
    """The longer sentence has the lower sum; only with the mean can it win."""
    suite = write_sentence_pairs(
        tmp_path / "x.csv", *[(bad, good) for good, bad in PAIRS[1:]], *PAIRS[1:]
    )
    folder = make_checkpoint()
    by_sum, summed = ask(folder, suite, tmp_path / "run")
    by_mean, averaged = ask(folder, suite, tmp_path / "run", compat="minicons")
    assert [p.pred for p in summed] == [1, 1, 0, 0] != [p.pred for p in averaged]
    assert [p.scores for p in summed] == [p.scores for p in averaged]
    assert by_mean.summary.headline.value == by_sum.summary.views["per-token"].value
    assert by_sum.summary.headline.value == by_mean.summary.views["sum"].value


# ---- a suite's own rule

NORMALISED = "global-piqa-nonparallel-2026"  # declares reduction = "per-token"
SOLUTIONS = [
    ("sleeps.", "sleeps near the house that the old dogs have never seen."),
    ("sees the boys", "sees"),
    ("has seen himself near a house", "has not"),
    ("see the small old dogs that sleep.", "see!"),
    ("is what every girl has seen", "xyzzy"),
]


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Invented rows of Global PIQA, in place of the official file."""
    made = [
        {
            "prompt": prompt,
            "solution0": a,
            "solution1": b,
            "label": n % 2,
            "example_id": f"{prompt[:3]}{n}",
        }
        for prompt in ("the old cat", "every girl near a house", "who")
        for n, (a, b) in enumerate(SOLUTIONS)
    ]
    place = tmp_path / "data" / "global_piqa_nonparallel"
    place.mkdir(parents=True)
    (place / "eng_latn.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    monkeypatch.setenv("ANTLM_BENCH_DATA", str(tmp_path / "data"))
    return made


@pytest.mark.long
@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_the_mean_per_token_decides_in_a_suite_that_says_so(
    kind: str, make_checkpoint: Make, tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    folder, right, differ = make_checkpoint(kind), 0, 0
    cell, predictions = ask(folder, Path(NORMALISED), tmp_path / "run", allow_incomplete=True)
    for prediction, row in zip(predictions, rows, strict=True):
        texts = [f"{row['prompt']} {row[f'solution{k}']}" for k in (0, 1)]
        start, masked = len(row["prompt"]), kind == "masked"
        sums, counts = zip(
            *(
                sum_logprobs_by_hand(folder, text, masked=masked, specials="own", start=start)
                for text in texts
            ),
            strict=True,
        )
        means = [s / n for s, n in zip(sums, counts, strict=True)]
        assert prediction.scores == pytest.approx(sums, abs=1e-3) and prediction.tokens == counts
        assert prediction.pred == max((0, 1), key=lambda k: means[k])
        right += prediction.pred == row["label"]
        differ += prediction.pred != max((0, 1), key=lambda k: sums[k])
    assert differ > 0, "the rows must tell sum and mean apart"
    assert cell.summary.headline.value == pytest.approx(right / len(rows))
    assert cell.settings["reduction"] == "per-token" and {"sum", "per-character"} <= set(
        cell.summary.views
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("compat", "decides"),
    [
        ("lm-eval", "sum"),
        ("babylm-2025", "sum"),
        ("babylm-2026", "per-token"),
        ("minicons", "per-token"),
    ],
)
def test_a_peer_with_one_rule_for_all_suites_keeps_it(
    compat: str, decides: str, make_checkpoint: Make, tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    cell, predictions = ask(
        make_checkpoint(), Path(NORMALISED), tmp_path / "run", allow_incomplete=True, compat=compat
    )
    assert (cell.settings["reduction"], cell.settings["compat"]) == (decides, compat)
    chosen = [
        [s / (n if decides == "per-token" else 1) for s, n in zip(p.scores, p.tokens, strict=True)]
        for p in predictions
    ]
    assert [p.pred for p in predictions] == [
        max((0, 1), key=values.__getitem__) for values in chosen
    ]
    assert len(predictions) == len(rows)


@pytest.mark.long
def test_other_suites_are_decided_by_the_sum_and_keep_their_keys(
    make_checkpoint: Make, tmp_path: Path
) -> None:
    """The facts behind a key are what they were before a suite could declare a reduction, digest
    included.
    """
    cell, _ = ask(make_checkpoint(), Path("nano"), tmp_path / "run", limit=2)
    assert cell.settings["reduction"] == "sum" and cell.settings["suite_digest"].startswith(
        "851e857456e63a59"
    )


@pytest.mark.long
@pytest.mark.usefixtures("rows")
def test_adaptive_precision_is_exact_where_a_mean_decides(
    make_checkpoint: Make, tmp_path: Path
) -> None:
    """Its bounds are of sums. A peer that always takes means is refused: nothing would be left to
    gain.
    """
    exact, right = ask(
        make_checkpoint(), Path(NORMALISED), tmp_path / "exact", allow_incomplete=True
    )
    cell, found = ask(
        make_checkpoint(),
        Path(NORMALISED),
        tmp_path / "run",
        precision="adaptive",
        allow_incomplete=True,
    )
    assert [p.scores for p in found] == [p.scores for p in right]
    assert cell.summary.headline.value == exact.summary.headline.value
    assert all("float32" in p.flags for p in found)
    with pytest.raises(UsageError, match="minicons compares means") as caught:
        score(
            make_checkpoint(), "nano", out=tmp_path / "run", precision="adaptive", compat="minicons"
        )
    assert caught.value.location == "--compat"


# ---- the peers' bundles, continued


@pytest.mark.long
@pytest.mark.parametrize("eos", [True, False])
def test_babylm_2024_puts_its_eos_or_the_word_none_before_masked_sentences(
    make_checkpoint: Make, tmp_path: Path, eos: bool
) -> None:
    from transformers import AutoTokenizer

    folder = shutil.copytree(make_checkpoint("masked"), tmp_path / "model")
    if not eos:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.eos_token = None
        tokenizer.save_pretrained(folder)
    prefix = "</s>" if eos else "None"  # two spaces follow, and are scored
    cell, predictions = ask(
        folder,
        write_sentence_pairs(tmp_path / "x.csv", *PAIRS),
        tmp_path / "run",
        compat="babylm-2024",
    )
    assert (cell.settings["context"], cell.settings["reduction"], cell.settings["ties"]) == (
        "eos",
        "per-token",
        "first",
    )
    for prediction, pair in zip(predictions, PAIRS, strict=True):
        sums, counts = zip(
            *(
                sum_logprobs_by_hand(
                    folder, f"{prefix}  {text}", masked=True, specials="own", start=len(prefix)
                )
                for text in pair
            ),
            strict=True,
        )
        assert prediction.scores == pytest.approx(sums, abs=1e-3) and prediction.tokens == counts
        assert prediction.characters == tuple(map(len, pair))
        assert prediction.pred == max((0, 1), key=lambda k: sums[k] / counts[k])


@pytest.mark.long
@pytest.mark.parametrize("compat", ["babylm-2025", "babylm-2026", "lm-eval"])
def test_masked_sentences_stand_in_the_tokenizers_own_template(
    make_checkpoint: Make, tmp_path: Path, compat: str
) -> None:
    folder, suite = make_checkpoint("masked"), write_sentence_pairs(tmp_path / "x.csv", *PAIRS)
    _, predictions = ask(folder, suite, tmp_path / "run", compat=compat)
    for prediction, pair in zip(predictions, PAIRS, strict=True):
        sums, counts = zip(
            *(sum_logprobs_by_hand(folder, text, masked=True, specials="own") for text in pair),
            strict=True,
        )
        assert prediction.scores == pytest.approx(sums, abs=1e-3) and prediction.tokens == counts


@pytest.mark.long
def test_a_bundles_rules_for_masking_leave_causal_scores_alone(
    make_checkpoint: Make, tmp_path: Path
) -> None:
    """BabyLM 2024 scores causal models as lm-eval does, in one call with its own masked rules."""
    suite, options = (
        write_pairs(tmp_path / "x.csv", make_agreement_rows()),
        {"device": "cpu", "methods": ["causal", "mlm"]},
    )
    [found] = score(
        make_checkpoint(), suite, out=tmp_path / "2024", compat="babylm-2024", **options
    )
    [lm_eval] = score(make_checkpoint(), suite, out=tmp_path / "lm", compat="lm-eval", **options)
    assert [cell.settings["reduction"] for cell in found] == ["sum", "per-token"]
    causal, mlm = ([read_rows(run.path, run.cells[k]) for run in (found, lm_eval)] for k in (0, 1))
    assert causal[0] == causal[1] and mlm[0] != mlm[1]


@pytest.mark.long
def test_what_is_said_explicitly_wins_over_the_bundle(
    make_checkpoint: Make, tmp_path: Path
) -> None:
    suite = write_sentence_pairs(tmp_path / "x.csv", *PAIRS)
    cell, _ = ask(
        make_checkpoint(), suite, tmp_path / "run", compat="babylm-2026", ties="strict", bos="never"
    )
    assert (cell.settings["ties"], cell.settings["bos"], cell.settings["compat"]) == (
        "strict",
        "never",
        "babylm-2026",
    )


# ---- texts beyond the declared length


def with_short_limit(folder: Path, positions: int, tokenizer_limit: int) -> Path:
    """The same checkpoint, whose files declare fewer positions than its texts have tokens."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": positions}))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config | {"model_max_length": tokenizer_limit})
    )
    return folder


@pytest.mark.long
@pytest.mark.parametrize("architecture", ["llama", "gpt-bert"])
def test_babylm_scores_relative_positions_beyond_the_limit(
    architecture: str, make_checkpoint: Make, tmp_path: Path
) -> None:
    """Rotary and log-bucketed positions: the official code never looks at the declared length."""
    masked = architecture == "gpt-bert"
    folder = shutil.copytree(make_checkpoint("masked" if masked else "causal"), tmp_path / "model")
    if masked:
        ltg_models.build_ltg_model("gpt", vocab_size=400).save_pretrained(folder)
    with_short_limit(folder, 16, 16)
    long = "the old cat " * 8
    suite = write_sentence_pairs(tmp_path / "x.csv", (f"{long}sleeps", f"{long}sleep"))
    with pytest.raises(DataError, match="none of 1 item fits the model, which reads 16 tokens"):
        ask(folder, suite, tmp_path / "ours")
    official = "mlm" if masked else "causal"
    cell, [prediction] = ask(
        folder, suite, tmp_path / "run", compat="babylm-2025", methods=official
    )
    texts = (f"{long}sleeps", f"{long}sleep")
    sums, counts = zip(
        *(sum_logprobs_by_hand(folder, text, masked=masked, specials="own") for text in texts),
        strict=True,
    )
    assert prediction.flags == () and min(counts) > 16
    assert prediction.scores == pytest.approx(sums, abs=1e-3) and prediction.tokens == counts
    assert (cell.settings["lengths"], cell.settings["max_length"]) == ("positions", None)


@pytest.mark.long
def test_learned_positions_end_where_they_end_under_babylm(
    make_checkpoint: Make, tmp_path: Path
) -> None:
    """The tokenizer's limit means nothing to the official code, the 64 learned positions do."""
    folder = shutil.copytree(make_checkpoint("masked"), tmp_path / "model")
    with_short_limit(folder, 64, 8)
    fits, long = (
        ("the old cat sleeps near", "the old cat sleep near"),
        ("the cat " * 40, "the cat sleep"),
    )
    suite = write_sentence_pairs(
        tmp_path / "x.csv", tuple(f"the {text} every old house" for text in fits), long
    )
    cell, predictions = ask(folder, suite, tmp_path / "run", compat="babylm-2025")
    assert [p.flags for p in predictions] == [(), ("too-long",)] and cell.settings[
        "max_length"
    ] == 64
    with pytest.raises(DataError, match="none of 2 items fits the model, which reads 8 tokens"):
        ask(folder, suite, tmp_path / "ours")
    with pytest.raises(DataError, match="reads 8 tokens"):  # what is given explicitly wins
        ask(folder, suite, tmp_path / "given", compat="babylm-2025", max_length=8)
