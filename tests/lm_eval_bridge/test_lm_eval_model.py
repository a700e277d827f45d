"""`--model antlm-bench` in lm-eval: its own causal model's numbers request by request, and what
that one cannot do.
"""

from __future__ import annotations

from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest
from prediction_rows import predict_rows

from antlm_bench.checkpoints import OpenOptions, open_checkpoint
from antlm_bench.errors import CheckpointError, DataError, MethodNotSupported, UsageError
from antlm_bench.lm_eval_bridge.model import AntlmBench
from antlm_bench.lm_eval_bridge.registration import MODEL_CLASS, MODEL_NAME, register_model
from antlm_bench.scoring.methods import resolve_method as find_method
from antlm_bench.types import Item, Option

pytestmark = pytest.mark.filterwarnings("ignore")  # the harness's own
ROOT = Path(__file__).resolve().parents[2]
REQUESTS = [
    ("", "the cat sees the dog"),
    ("", " the cat"),
    ("the cat", " sees the dog"),
    ("the cat", " sees"),
    ("the cat ", "sees"),
    ("the boys near\n", "the old house"),
    ("the boys near \n\n", " the old house"),
    ("which girl, naïve ☕", " has seen herself ☕☕"),
    ("who never", " unbelievably antidisestablishmentarian"),
    ("who never", ", ever"),
    ("a", " b"),
]


def instances(pairs):
    from lm_eval.api.instance import Instance

    return [Instance("loglikelihood", {}, pair, 0) for pair in pairs]


def hf(folder, **options):
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), device="cpu", batch_size=1, **options)


def same(ours, theirs):
    assert [a for a, _ in ours] == pytest.approx([b for b, _ in theirs], abs=1e-4)
    assert [bool(a) for _, a in ours] == [bool(b) for _, b in theirs]


@pytest.mark.long
@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "GPT2LMHeadModel"])
def test_every_request_is_answered_as_hf_answers_it(make_checkpoint, adds, architecture):
    folder = make_checkpoint("causal", adds=adds, architecture=architecture)
    ours = AntlmBench(str(folder), device="cpu").loglikelihood(instances(REQUESTS))
    # HFLM with its cache of logits misreads two requests of one text that are split at different
    # places (0.4.13).
    theirs = hf(folder, logits_cache=False).loglikelihood(instances(REQUESTS), disable_tqdm=True)
    same(ours, theirs)


@pytest.mark.long
def test_two_splits_of_one_text_are_not_mixed_up(make_checkpoint):
    """HFLM's (0.4.13) does, and reads the shorter continuation at wrong positions;
    docs/how-to/lm-eval.md says so.
    """
    folder, pairs = (
        make_checkpoint("causal", adds=True),
        instances([("", "the cat sees the dog"), ("the cat", " sees the dog")]),
    )
    ours = AntlmBench(str(folder), device="cpu").loglikelihood(pairs)
    same(ours, hf(folder, logits_cache=False).loglikelihood(pairs, disable_tqdm=True))
    cached = hf(folder).loglikelihood(pairs, disable_tqdm=True)
    assert (
        ours[0][0] == pytest.approx(cached[0][0], abs=1e-4) and abs(ours[1][0] - cached[1][0]) > 0.1
    )


@pytest.mark.long
def test_an_eos_that_the_tokenizer_adds_is_never_scored(make_checkpoint, tmp_path):
    """HFLM counts the context's EOS among its tokens, and scores the EOS of the whole;
    docs/how-to/lm-eval.md says so.
    """
    from tiny_models import train_tokenizer
    from transformers import AutoModelForCausalLM

    folder, pairs = make_checkpoint("causal", adds=True), instances([("the cat", " sees the dog")])
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path)
    train_tokenizer("masked", True).save_pretrained(tmp_path)  # <s> ... </s>
    ours = AntlmBench(str(tmp_path), method="causal", device="cpu").loglikelihood(pairs)
    same(ours, AntlmBench(str(folder), device="cpu").loglikelihood(pairs))
    assert abs(ours[0][0] - hf(tmp_path).loglikelihood(pairs, disable_tqdm=True)[0][0]) > 0.1


@pytest.mark.long
def test_the_first_choices_of_the_model_are_known(make_checkpoint):
    """Continuations that the model would write itself: `is_greedy`, which exact_match and lambada's
    acc rest on.
    """
    import torch

    folder = make_checkpoint("causal", adds=True)
    theirs, pairs = hf(folder), []
    tokenizer = theirs.tokenizer
    for context in (
        "the cat",
        "a dog",
        "the old house near",
        "who",
        "boys",
        "no girl",
        "some houses",
        "what",
        "every",
    ):
        ids = tokenizer(context)["input_ids"]
        for _ in range(2):
            with torch.inference_mode():
                ids = [*ids, int(theirs.model(torch.tensor([ids])).logits[0, -1].argmax())]
        text = tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        ).lstrip()
        if text.startswith(context) and tokenizer(text)["input_ids"] == ids:
            pairs += [(context, text[len(context) :]), (context, text[len(context) :] + " cat")]
    ours = AntlmBench(str(folder), device="cpu").loglikelihood(instances(pairs))
    same(ours, theirs.loglikelihood(instances(pairs), disable_tqdm=True))
    assert {first for _, first in ours} == {True, False}


@pytest.mark.long
def test_responses_are_ordered_and_reach_the_cache(make_checkpoint):
    model = AntlmBench(str(make_checkpoint("causal")), device="cpu")
    seen = {}
    model.cache_hook.add_partial = lambda kind, asked, answer: seen.__setitem__(
        (kind, asked), answer
    )
    forwards = model.loglikelihood(instances(REQUESTS))
    backwards = model.loglikelihood(instances(REQUESTS[::-1]))
    assert [a for a, _ in forwards] == pytest.approx([a for a, _ in backwards[::-1]], abs=1e-5)
    assert seen == {
        ("loglikelihood", pair): answer
        for pair, answer in zip(REQUESTS, backwards[::-1], strict=True)
    }


def test_a_token_that_straddles_the_border_is_scored_whole(make_checkpoint):
    """The harness counts the context's tokens instead, and would not score the first letters of "
    sleeps" here.
    """
    folder = make_checkpoint("causal")
    straddling = instances([("the cat sle", "eps")])
    model = AntlmBench(str(folder), device="cpu")
    tokens = model.request_encoder.checkpoint.encoders["causal"].tokenizer.tokenize(
        "the cat sleeps"
    )
    assert tokens[-1].endswith("sleeps")
    whole = model.loglikelihood(instances([("the cat", " sleeps")]))[0][0]
    assert model.loglikelihood(straddling)[0][0] == pytest.approx(whole, abs=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("name", ["mlm", "mlm-l2r", "mntp", "fused", "causal"])
def test_other_methods_answer_what_score_answers(make_checkpoint, name):
    folder = make_checkpoint("causal")
    pairs = [pair for pair in REQUESTS if pair[0].rstrip() == pair[0]]
    answers = AntlmBench(str(folder), method=name, bos="auto", device="cpu").loglikelihood(
        instances(pairs)
    )
    opened = open_checkpoint(str(folder), OpenOptions(device="cpu"))
    options = [Option(c + t, (len(c), len(c + t)) if c else None) for c, t in pairs]
    items = [Item(str(n), (option,), 0) for n, option in enumerate(options)]
    wanted = [p.scores[0] for p in predict_rows(opened, items, [find_method(name, opened)])[0]]
    assert [score for score, _ in answers] == pytest.approx(wanted, abs=1e-4)


@pytest.mark.long
def test_a_masked_model_knows_its_first_choices(make_checkpoint):
    """By a plain loop: is the hidden token the one that the model would fill in?"""
    import torch
    import transformers

    folder = make_checkpoint("masked")
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    words = ["the", "cat", "dogs", "sees", "near", "old", "never", "who", "boys", "himself"]
    pairs, wanted = [], []
    for context, word in [(a, b) for a, b in pairwise(words * 4)]:
        ids = tokenizer(f"{context} {word}")["input_ids"]
        if len(ids) == 4:
            for at in (2,):
                hidden = torch.tensor([ids])
                hidden[0, at] = tokenizer.mask_token_id
                with torch.inference_mode():
                    best = int(model(input_ids=hidden).logits[0, at].argmax())
                pairs += [(context, f" {word}")]
                wanted += [best == ids[at]]
                filled = tokenizer.decode([best])
                if tokenizer(f"{context}{filled}")["input_ids"] == [*ids[:2], best, ids[3]]:
                    pairs += [(context, filled)]
                    wanted += [True]
    answers = AntlmBench(str(folder), device="cpu").loglikelihood(instances(pairs))
    assert [first for _, first in answers] == wanted and len(pairs) > 5


LONG = " ".join(["the old boys near the small houses never see some girls"] * 8)


def test_what_does_not_fit_is_refused_and_never_cut_silently(make_checkpoint):
    model = AntlmBench(str(make_checkpoint("causal")), device="cpu")
    with pytest.raises(DataError, match="64 tokens") as caught:
        model.loglikelihood(instances([("the cat", " sees"), (LONG, " see")]))
    assert "truncate=left" in caught.value.hint


@pytest.mark.long
@pytest.mark.parametrize("adds", [True, False])
def test_cut_on_the_left_it_is_what_hf_answers_and_is_counted(make_checkpoint, adds, caplog):
    folder = make_checkpoint("causal", adds=adds)
    pairs = [
        (LONG[at:], " see the dog") for at in range(0, 300, 4)
    ]  # some fit, one fits just so, some do not
    ours = AntlmBench(str(folder), truncate="left", device="cpu")
    answers = ours.loglikelihood(instances(pairs))
    same(answers, hf(folder, max_length=64).loglikelihood(instances(pairs), disable_tqdm=True))
    assert 0 < ours.request_encoder.num_truncated < len(pairs)
    assert f"{ours.request_encoder.num_truncated} texts lost" in caplog.text


def test_a_masked_row_keeps_its_specials_when_cut(make_checkpoint):
    folder = make_checkpoint("masked")
    model = AntlmBench(str(folder), truncate="left", device="cpu")
    encoder = model.request_encoder.encoders["full"]
    ids = encoder.tokenizer(LONG + " see", add_special_tokens=False)["input_ids"]
    (found,) = model.request_encoder.encode(
        [LONG + " see"], [(len(LONG), len(LONG) + 4)], "full"
    ).batches
    assert found.ids[0].tolist() == [1, *ids[-62:], 2]
    assert found.score_mask[0].nonzero()[0].tolist() == [62]
    assert model.loglikelihood(instances([(LONG, " see")]))[0][0] < 0


def test_a_continuation_is_never_cut(make_checkpoint):
    model = AntlmBench(str(make_checkpoint("causal")), truncate="left", device="cpu")
    with pytest.raises(DataError, match="continuation alone"):
        model.loglikelihood(instances([("the", " " + LONG)]))


def test_a_request_without_a_scored_token_is_refused(make_checkpoint):
    with pytest.raises(DataError, match="can be scored"):
        AntlmBench(str(make_checkpoint("causal")), device="cpu").loglikelihood(
            instances([("the cat", "")])
        )


@pytest.mark.long
@pytest.mark.parametrize("adds", [True, False])
def test_rolling_windows_are_hf_s_with_one_bos(make_checkpoint, adds):
    """HFLM begins a text with two BOS where the tokenizer adds one; told not to (add_bos_token),
    with one, as we do.
    """
    from lm_eval.api.instance import Instance

    folder = make_checkpoint("causal", adds=adds)
    texts = ["the cat sees the dog", LONG, "naïve ☕", ""]
    requests = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts]
    ours = AntlmBench(str(folder), device="cpu").loglikelihood_rolling(requests)
    theirs = hf(folder, max_length=64, add_bos_token=False).loglikelihood_rolling(
        requests[:-1], disable_tqdm=True
    )
    assert (
        ours[:-1] == pytest.approx(theirs, abs=1e-3) and ours[-1] == 0.0
    )  # LONG is a sum over 100 tokens
    assert ours[0] == pytest.approx(theirs[0], abs=1e-4)
    doubled = hf(folder, max_length=64).loglikelihood_rolling(requests[:1], disable_tqdm=True)
    assert (abs(ours[0] - doubled[0]) > 0.1) == adds


@pytest.mark.long
def test_perplexity_and_generation_are_refused(make_checkpoint):
    masked = AntlmBench(str(make_checkpoint("masked")), device="cpu")
    with pytest.raises(MethodNotSupported, match="'causal', not 'mlm'"):
        masked.loglikelihood_rolling(instances([("a",)]))
    with pytest.raises(MethodNotSupported, match="masked model does not generate text"):
        masked.generate_until([])
    with pytest.raises(MethodNotSupported) as caught:
        AntlmBench(str(make_checkpoint("causal")), device="cpu").generate_until([])
    assert "--model hf" in caught.value.hint


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"metod": "mlm"}, UsageError, "did you mean 'method'"),
        ({"truncate": "right"}, UsageError, "never, left"),
        ({"method": "mml"}, UsageError, "unknown method"),
        ({"bos": "sometimes"}, UsageError, "unknown policy"),
        ({"method": "mlm"}, MethodNotSupported, "no mask token"),
    ],
)
def test_wrong_arguments_name_themselves(make_checkpoint, arguments, error, says):
    with pytest.raises(error, match=says):
        AntlmBench(str(make_checkpoint("causal", mask=False)), device="cpu", **arguments)
    with pytest.raises(CheckpointError):
        AntlmBench("no/such-folder", device="cpu")


def test_the_entry_point_of_later_versions_leads_to_the_model():
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'[project.entry-points."lm_eval.models"]\n{MODEL_NAME} = "{MODEL_CLASS}"' in declared
    module, _, attribute = MODEL_CLASS.partition(":")
    assert getattr(import_module(module), attribute) is AntlmBench


def test_registering_twice_is_fine_and_hides_no_other_model():
    from lm_eval.api.registry import get_model

    register_model()
    register_model()
    assert get_model(MODEL_NAME) is AntlmBench
    assert get_model("dummy").__name__ == "DummyLM"


@pytest.mark.long
def test_the_table_of_results_is_the_one_of_hf(make_checkpoint, make_task):
    """Choices by log-probability (acc) and per character (acc_norm), lambada's greedy acc, and
    perplexity.
    """
    import lm_eval
    from lm_eval.tasks import TaskManager

    mean = {"aggregation": "mean", "higher_is_better": True}
    both = [{"metric": "acc", **mean}, {"metric": "acc_norm", **mean}]
    file = make_task("toy_table", metric_list=both)
    one = {
        "output_type": "loglikelihood",
        "doc_to_choice": None,
        "doc_to_target": " {{choices[0]}}",
    }
    make_task("toy_one", **one, metric_list=[{"metric": "acc", **mean}, {"metric": "perplexity"}])
    folder, tasks = str(make_checkpoint("causal", adds=True)), ["toy_table", "toy_one"]
    manager = TaskManager(include_defaults=False, include_path=str(file.parent))
    register_model()
    tables = [
        lm_eval.simple_evaluate(
            model=model, model_args=arguments, tasks=tasks, task_manager=manager,
            device="cpu", bootstrap_iters=0
        )["results"]
        for model, arguments in (
            (MODEL_NAME, {"pretrained": folder}), ("hf", {"pretrained": folder})
        )
    ]  # fmt: skip
    for task in tasks:
        numbers = [
            {k: v for k, v in table[task].items() if isinstance(v, float)} for table in tables
        ]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-4) and numbers[0]


def test_an_entry_point_is_a_model_once_it_is_asked_for():
    """As versions that read entry points do it: recorded under its name, imported on use."""
    from importlib.metadata import EntryPoint

    from lm_eval.api.model import LM
    from lm_eval.api.registry import Registry

    registry = Registry("model", base_cls=LM)
    registry.register(MODEL_NAME, target=EntryPoint(MODEL_NAME, MODEL_CLASS, "lm_eval.models"))
    assert registry.get(MODEL_NAME) is AntlmBench


def test_an_error_of_ours_is_a_message_and_an_exit_code(monkeypatch, capsys):
    import lm_eval.__main__

    from antlm_bench.lm_eval_bridge.__main__ import main

    def fail():
        raise MethodNotSupported("no mask token", location="--model_args", hint="method=causal")

    monkeypatch.setattr(lm_eval.__main__, "cli_evaluate", fail)
    assert main() == 2
    assert "--model_args: no mask token" in capsys.readouterr().err
