"""Every --compat bundle against recorded official scores, the peers themselves and plain loops."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peer_helpers import load_transformers
from prediction_rows import PredictionRow, from_rows, read_rows
from scipy.stats import spearmanr

from antlm_bench import score
from antlm_bench.errors import MethodNotSupported
from antlm_bench.metrics import load_cell_metric
from antlm_bench.metrics.prediction_table import build_table
from antlm_bench.scoring import peers
from antlm_bench.suites import loader, records
from antlm_bench.types import Cell

Make = Callable[..., Path]
SUITES = {
    "blimp_filtered": "blimp-filtered",
    "supplement_filtered": "supplement",
    "ewok_filtered": "ewok-2025",
    "wug_adj_nominalization": "wug-adj",
    "wug_past_tense": "wug-past",
    "entity_tracking": "entity-tracking-2025",
    "comps": "comps",
}
RECORDED = [
    f"{year}_{backend}_{checkpoint}"
    for year, backend, checkpoints in (
        (2024, "causal", ("llama_bos", "llama_nobos")),
        (2024, "mlm", ("bert_bpe", "bert_wordpiece")),
        (2025, "causal", ("llama_bos", "llama_nobos")),
        (2025, "mlm", ("bert_bpe", "bert_wordpiece")),
        (2025, "mntp", ("bert_bpe", "bert_wordpiece")),
    )
    for checkpoint in checkpoints
]
# (context, continuations); "" = no context.
REQUESTS = [
    ("", ("the cat sleeps near the house.", "the cat sleep near the house.")),
    ("", ("who sees himself?", "what does every old girl see that the boys never see?")),
    ("the old cat sees every dog.", ("the dogs sleep.", "a dog sleeps near no house.")),
    (
        "who has seen the boys?",
        ("a girl has", "the small old girls that sleep near the house have."),
    ),
]

pytestmark = pytest.mark.filterwarnings("ignore")  # of the peers


def deciding_scores(cell: Cell, prediction: PredictionRow) -> list[float]:
    """Return the scores that decide: sums, or means per token."""
    if cell.settings["reduction"] == "sum":
        return list(prediction.scores)
    return [s / n for s, n in zip(prediction.scores, prediction.tokens, strict=True)]


def argmax_first(scores: list[float]) -> int:
    return max(range(len(scores)), key=lambda k: (scores[k], -k))


# --- the official code's recorded scores ---


@pytest.fixture
def official_data(cases_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make our loaders read the small recorded files instead of the official ones."""
    root = cases_root / "official"

    def rows(spec: Any, folder: Path) -> Iterator[Any]:
        for pattern in spec.data.where:
            for file in spec.data.files:
                path = root / "data" / pattern.format(file=file)
                if path.is_file():
                    yield file, str(path), records.read_records(path.read_bytes(), file, str(path))

    monkeypatch.setattr(loader, "_iter_official_files", rows)
    return root


@pytest.mark.long
@pytest.mark.parametrize("name", RECORDED)
def test_scores_equal_those_of_the_official_code(
    name: str, official_data: Path, tmp_path: Path
) -> None:
    recorded = json.loads((official_data / "scores" / f"{name}.json").read_text())
    suites = [
        SUITES[dataset] for dataset in dict.fromkeys(item["dataset"] for item in recorded["items"])
    ]
    [run] = score(
        official_data / "checkpoints" / recorded["checkpoint"],
        suites,
        methods=recorded["backend"],
        compat=f"babylm-{recorded['year']}",
        allow_incomplete=True,
        device="cpu",
        out=tmp_path / "run",
    )
    predictions_by_id = {p.id: (cell, p) for cell in run for p in read_rows(run.path, cell)}
    assert len(predictions_by_id) == len(recorded["items"])
    for item in recorded["items"]:
        cell, prediction = predictions_by_id[item["id"]]
        # The masked backend of 2024 shuffles scores; `scores_in_place` has the right order.
        expected = item.get("scores_in_place", item["scores"])
        assert deciding_scores(cell, prediction) == pytest.approx(expected, abs=1e-4), item["id"]
        best, second = sorted(expected, reverse=True)[:2]
        if best == second or best - second > 1e-4:  # closer ones are decided by rounding
            assert prediction.pred == argmax_first(expected)
        if "scores_in_place" not in item:
            assert prediction.pred == item["choice"]
    for cell in run:
        if cell.summary.metric == "spearman":
            assert_official_ratings(cell, run.path, recorded["items"])


def assert_official_ratings(cell: Cell, path: str, recorded: list[dict[str, Any]]) -> None:
    """Compare ranked probabilities and their correlation with ratings to the official code."""
    predictions = read_rows(path, cell)
    probabilities = {item["id"]: item["prob"] for item in recorded if "prob" in item}
    theirs = [probabilities[p.id] for p in predictions]
    ours = load_cell_metric(cell).per_item(build_table(from_rows(predictions), set()))
    assert ours.tolist() == pytest.approx(theirs, abs=5e-5)  # as the scores allow
    expected = spearmanr(theirs, [p.gold for p in predictions])[0]
    assert cell.summary.headline.value == pytest.approx(expected, abs=1e-9)


# --- the same conventions, rebuilt ---


@pytest.fixture
def requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two suites of REQUESTS: sentences, and options after contexts as in EWoK."""
    rows = {"plain": [], "after": []}  # type: dict[str, list[dict[str, str]]]
    for number, (context, (good, bad)) in enumerate(REQUESTS):
        rows["after" if context else "plain"].append(
            {"context": context, "good": good, "bad": bad, "name": f"request_{number}"}
        )
    option = {"plain": 'scored = "{KIND}"', "after": 'context = "{context}", scored = " {KIND}"'}
    monkeypatch.setenv("ANTLM_BENCH_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    paths = []
    for name, suite_rows in rows.items():
        (tmp_path / "data" / f"{name}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in suite_rows)
        )
        options = ", ".join(
            f"{{ {option[name].replace('KIND', kind)} }}" for kind in ("good", "bad")
        )
        declaration = f"""
kind = "suite"
name = "{name}"
version = "1"
title = "x"
licence = "CC0"
citation = "x"
groups = []
macro = []
[item]
options = [{options}]
id = "{{name}}"
[data]
where = ["{{file}}"]
files = {{ "{name}.jsonl" = {{}} }}
"""
        path = tmp_path / f"{name}.toml"
        path.write_text(declaration)
        paths.append(str(path))
    return paths


def score_requests(folder: Path, suites: list[str], out: Path, **options: Any) -> list[list[float]]:
    """Return the deciding scores of both options of every request."""
    [run] = score(folder, suites, out=out, device="cpu", **options)
    predictions_by_id = {p.id: (cell, p) for cell in run for p in read_rows(run.path, cell)}
    scores = []
    for number in range(len(REQUESTS)):
        cell, prediction = predictions_by_id[f"request_{number}"]
        scores.append(deciding_scores(cell, prediction))
        assert prediction.pred == argmax_first(scores[-1])
    return scores


def compute_logprobs(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)


def score_causal_2024(model: Any, tokenizer: Any, context: str, continuation: str) -> float:
    """BOS only before texts without a context; the space before a continuation is scored."""
    plain = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    before = plain(context) if context else [tokenizer.bos_token_id]
    ids = plain(f"{context} {continuation}") if context else before + plain(f" {continuation}")
    table = compute_logprobs(model, ids)
    return sum(table[at - 1, ids[at]].item() for at in range(len(before), len(ids)))


def score_masked_2024(model: Any, tokenizer: Any, context: str, continuation: str) -> float:
    """Two spaces after the context (EOS or "None" if empty); the mean over what follows it."""
    context = context or str(tokenizer.eos_token)
    left_out = {tokenizer.pad_token_id, tokenizer.sep_token_id}
    start = sum(token not in left_out for token in tokenizer(context)["input_ids"])
    ids, values = tokenizer(f"{context}  {continuation}")["input_ids"], []
    for at, token in enumerate(ids):
        if at >= start and token not in left_out | {tokenizer.cls_token_id}:
            hidden = [*ids[:at], tokenizer.mask_token_id, *ids[at + 1 :]]
            values.append(compute_logprobs(model, hidden)[at, token].item())
    return sum(values) / len(values)


@pytest.mark.long
@pytest.mark.parametrize("adds", [True, False])
def test_2024_causal_puts_bos_before_texts_without_context_only(
    adds: bool, make_checkpoint: Make, requests: list[str], tmp_path: Path
) -> None:
    folder = make_checkpoint("causal", adds=adds)
    ours = score_requests(folder, requests, tmp_path / "run", compat="babylm-2024")
    model, tokenizer = load_transformers(folder)
    for (context, pair), scores in zip(REQUESTS, ours, strict=True):
        assert scores == pytest.approx(
            [score_causal_2024(model, tokenizer, context, text) for text in pair], abs=1e-3
        )
    explicit = score_requests(folder, requests, tmp_path / "bos", compat="babylm-2024", bos="auto")
    # An explicit --bos applies to all texts.
    assert explicit[:2] == ours[:2] and explicit[2] != pytest.approx(ours[2], abs=1e-3)


@pytest.mark.long
@pytest.mark.parametrize("eos", [True, False])
def test_2024_masked_joins_with_two_spaces(
    eos: bool, make_checkpoint: Make, requests: list[str], tmp_path: Path
) -> None:
    folder = shutil.copytree(make_checkpoint("masked"), tmp_path / "model")
    if not eos:
        _, tokenizer = load_transformers(folder)
        tokenizer.eos_token = None
        tokenizer.save_pretrained(folder)
    ours = score_requests(folder, requests, tmp_path / "run", compat="babylm-2024")
    model, tokenizer = load_transformers(folder)
    assert (tokenizer.eos_token is not None) == eos
    for (context, pair), scores in zip(REQUESTS, ours, strict=True):
        assert scores == pytest.approx(
            [score_masked_2024(model, tokenizer, context, text) for text in pair], abs=1e-3
        )


@pytest.mark.long
@pytest.mark.parametrize("adds", [True, False])
def test_minicons_reads_requests_of_2024_as_our_engine_does(
    adds: bool, make_checkpoint: Make, requests: list[str], tmp_path: Path
) -> None:
    """--engine minicons gives the same numbers under a bundle with two BOS policies."""
    folder = make_checkpoint("causal", adds=adds)
    ours = score_requests(folder, requests, tmp_path / "ours", compat="babylm-2024")
    theirs = score_requests(
        folder, requests, tmp_path / "theirs", compat="babylm-2024", engine="minicons"
    )
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, abs=1e-3)


# --- the peers themselves ---


@pytest.fixture(
    params=[("$A </s>", "<pad>"), ("<s> $A </s>", "<pad>"), ("<s> $A </s>", None)], ids=str
)
def ending_in_eos(request: pytest.FixtureRequest, make_checkpoint: Make, tmp_path: Path) -> Path:
    """A causal checkpoint whose tokenizer ends texts with EOS; minicons may pad with EOS, too."""
    from tokenizers import processors

    template, padding = request.param
    folder = shutil.copytree(make_checkpoint("causal"), tmp_path / "model")
    _, tokenizer = load_transformers(folder)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer.pad_token = padding
    tokenizer.save_pretrained(folder)
    return folder


def lm_eval_scores(folder: Path) -> list[float]:
    """Score every option of REQUESTS with lm-eval and its target_delimiter."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = load_transformers(folder)
    pairs = [(context, f" {text}") for context, texts in REQUESTS for text in texts]
    instances = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    answers = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1).loglikelihood(
        instances, disable_tqdm=True
    )
    return [answer[0] for answer in answers]


def minicons_scores(kind: str, folder: Path) -> list[float]:
    """Score every option of REQUESTS: conditional_score after a context, else sequence_score."""
    scorer = peers.make_minicons_scorer(kind, *load_transformers(folder))
    scores = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for context, texts in REQUESTS:
            for text in texts:
                scores += (
                    scorer.conditional_score([context], [text])
                    if context
                    else scorer.sequence_score([text])
                )
    return [float(score) for score in scores]


@pytest.mark.long
@pytest.mark.parametrize("adds", [True, False])
def test_the_lm_eval_bundle_equals_lm_eval(
    adds: bool, make_checkpoint: Make, requests: list[str], tmp_path: Path
) -> None:
    folder = make_checkpoint("causal", adds=adds)
    ours = score_requests(folder, requests, tmp_path / "run", compat="lm-eval")
    assert [x for scores in ours for x in scores] == pytest.approx(lm_eval_scores(folder), abs=1e-3)


@pytest.mark.long
@pytest.mark.parametrize(("kind", "adds"), [("causal", True), ("causal", False), ("masked", True)])
def test_the_minicons_bundle_equals_minicons(
    kind: str, adds: bool, make_checkpoint: Make, requests: list[str], tmp_path: Path
) -> None:
    folder = make_checkpoint(kind, adds=adds)
    ours = score_requests(folder, requests, tmp_path / "run", compat="minicons")
    assert [x for scores in ours for x in scores] == pytest.approx(
        minicons_scores(kind, folder), abs=1e-3
    )


@pytest.mark.long
def test_lm_eval_scores_eos_after_a_context(
    ending_in_eos: Path, requests: list[str], tmp_path: Path
) -> None:
    ours = score_requests(ending_in_eos, requests, tmp_path / "run", compat="lm-eval")
    assert [x for scores in ours for x in scores] == pytest.approx(
        lm_eval_scores(ending_in_eos), abs=1e-3
    )
    with pytest.raises(MethodNotSupported, match="which minicons cannot do"):
        score_requests(
            ending_in_eos, requests, tmp_path / "minicons", compat="lm-eval", engine="minicons"
        )


@pytest.mark.long
def test_minicons_scores_eos_of_every_text(
    ending_in_eos: Path, requests: list[str], tmp_path: Path
) -> None:
    expected = pytest.approx(minicons_scores("causal", ending_in_eos), abs=1e-3)
    for engine in ("native", "minicons"):
        ours = score_requests(
            ending_in_eos, requests, tmp_path / engine, compat="minicons", engine=engine
        )
        assert [x for scores in ours for x in scores] == expected


@pytest.mark.long
def test_an_explicit_bos_leaves_eos_unscored(
    ending_in_eos: Path, requests: list[str], tmp_path: Path
) -> None:
    explicit = score_requests(
        ending_in_eos, requests, tmp_path / "bos", compat="minicons", bos="tokenizer"
    )
    model, tokenizer = load_transformers(ending_in_eos)
    for (context, pair), scores in zip(REQUESTS, explicit, strict=True):
        for text, value in zip(pair, scores, strict=True):
            ids = tokenizer(f"{context} {text}" if context else text)["input_ids"][:-1]
            first = len(tokenizer(context)["input_ids"]) - 1 if context else 0
            positions = range(max(first, 1), len(ids))
            table = compute_logprobs(model, ids)
            assert value == pytest.approx(
                sum(table[i - 1, ids[i]].item() for i in positions) / len(positions), abs=1e-3
            )
