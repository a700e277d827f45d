"""BabyLM 2025's finetuning recipe, rule by rule and as a whole, against a plain loop."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from finetuning_helpers import TRAINING_SETTINGS, make_backbone, make_example, make_task
from prediction_rows import to_rows
from test_finetuning_heads import backbone_named as other_body_named
from tiny_models import build_model
from tokenizers import processors
from torch import nn

from antlm_bench.declarations import find_declaration
from antlm_bench.errors import UsageError
from antlm_bench.finetuning.batches import epoch_batches
from antlm_bench.finetuning.data import encode_with_tokenizer, official_max_row_length
from antlm_bench.finetuning.data import max_row_length as longest_of_ours
from antlm_bench.finetuning.heads import ClassificationHead, resolve_pooling
from antlm_bench.finetuning.loop import ClassifierTrainer, FinetuneSettings, finetune, learning_rate
from antlm_bench.suites.classification import PIPELINE_DEFAULTS, TaskSpec, TrainingSpec
from antlm_bench.suites.classification_loader import build_examples
from antlm_bench.suites.task_types import read_declaration_file
from antlm_bench.types import Example

CPU = FinetuneSettings(device="cpu")
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
PRESET = (
    read_declaration_file(find_declaration("tasks", "glue-2025")).preset["babylm-2025"].training
)
OFFICIAL = {name: value for name, value in PRESET.items() if name in PIPELINE_DEFAULTS}


def official(train: int = 83, valid: int = 20, law: str = "word", **training: object):
    """A toy task with the preset's settings: 8 texts per update, cosine with 6% warm-up to 0.1."""
    numbers = {
        "batch": 8,
        "epochs": 2,
        "warmup": 0.06,
        "schedule": "cosine",
        "floor": 0.1,
        "clip": None,
        "dropout": 0.0,
    }
    return make_task(train, valid, law, "valid", **(OFFICIAL | numbers | training))


def backbone_named(name: str):
    """A tiny backbone; "masked" has token types, which the official code never passes."""
    kind = "masked" if name == "masked" else "causal"
    architecture = "GPT2LMHeadModel" if name == "gpt2" else ""
    more = NO_DROPOUT if kind == "masked" else {}
    more |= (
        {"n_positions": 64, "attn_pdrop": 0, "resid_pdrop": 0, "embd_pdrop": 0}
        if name == "gpt2"
        else {}
    )
    return make_backbone(build_model(kind, 0, architecture, **more), kind)


# -- the whole


class RecordingCallback:
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_step_end(self, updates_done: int, total_updates: int, loss: float) -> None:
        self.losses.append(loss)

    def on_epoch_end(self, epoch: int, selection_score: float) -> None:
        pass


def plain_loop(body, toy, seed: int, orders: list[list[np.ndarray]]):
    """The losses of all updates, and the weights of the best epoch: torch, a tokenizer and a model,
    nothing of ours.
    """
    spec, model = toy.training, copy.deepcopy(body.model)
    width = model.config.hidden_size
    torch.manual_seed(seed)
    head = nn.Sequential(
        nn.LayerNorm(width, 1e-5, elementwise_affine=False), nn.Linear(width, width), nn.GELU(),
        nn.LayerNorm(width, 1e-5, elementwise_affine=False), nn.Dropout(spec.dropout),
        nn.Linear(width, 2),
    )  # fmt: skip
    both = nn.ModuleList([model, head])

    def logits(examples: list[Example]) -> torch.Tensor:
        pairs = [(e.first, e.second) for e in examples]
        batch = body.tokenizer(
            pairs, return_tensors="pt", padding=True, truncation=True, max_length=spec.max_length
        )
        return head(
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])[0][:, 0]
        )

    optimizer = torch.optim.AdamW(
        both.parameters(), lr=spec.lr, betas=(0.9, 0.999), eps=spec.eps, weight_decay=0.01
    )
    total = spec.epochs * (len(toy.train) // spec.batch)
    warm = int(0.06 * total)

    def factor(step: int) -> float:
        if step < warm:
            return step / warm
        return 0.1 + 0.9 * (1 + math.cos(math.pi * (step - warm) / (total - warm))) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    losses, best, kept = [], None, {}
    for order in orders:
        both.train()
        for chosen in order:
            examples = [toy.train[i] for i in chosen]
            loss = nn.functional.cross_entropy(
                logits(examples), torch.tensor([e.gold for e in examples])
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        both.eval()
        with torch.no_grad():
            answers = logits(list(toy.valid)).argmax(-1)
        score = sum(int(a) == e.gold for a, e in zip(answers, toy.valid, strict=True)) / len(
            toy.valid
        )
        if best is None or score > best:
            best, kept = score, {name: p.detach().clone() for name, p in both.named_parameters()}
    return losses, kept


@pytest.mark.long
@pytest.mark.parametrize("name", ["masked", "causal", "gpt2"])
def test_twenty_updates_equal_the_official_recipe(name):
    # A larger eps than the official 1e-8, so that a gradient of nothing but rounding moves no
    # weight.
    body, toy = backbone_named(name), official(law="second", eps=1e-5)
    rows, valid = (encode_with_tokenizer(body, part, 40) for part in (toy.train, toy.valid))
    orders = [list(epoch_batches(rows.lengths, toy.training, 5, epoch)) for epoch in (1, 2)]
    callback = RecordingCallback()
    learner = ClassifierTrainer(body, toy, 5, body.native_attention, replace(CPU, batch_tokens=90))
    learner.train(rows, valid, callback)
    losses, weights = plain_loop(body, toy, 5, orders)
    assert len(losses) == 20
    np.testing.assert_allclose(callback.losses, losses, atol=1e-5)
    learned = {
        name.replace("backbone.", "0.", 1).replace("head.", "1.", 1): p
        for name, p in learner.model.named_parameters()
    }
    assert learned.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(learned[name], weight, atol=1e-5, rtol=0, msg=name)


@pytest.mark.long
def test_our_recipe_differs_from_the_official_one():
    """Else the test above could not fail."""
    body, ours = (
        backbone_named("masked"),
        make_task(83, 20, "second", "valid", batch=8, epochs=2, dropout=0.0),
    )
    callbacks = RecordingCallback(), RecordingCallback()
    finetune(body, official(law="second"), 5, "full", CPU, callbacks[0])
    finetune(body, ours, 5, "full", CPU, callbacks[1])
    assert callbacks[0].losses[0] != pytest.approx(callbacks[1].losses[0], abs=1e-4)


# -- law by law


@pytest.mark.long
def test_the_last_partial_batch_is_dropped():
    """100 texts in batches of 16, 3 epochs: 18 updates; ours makes 21."""
    created = []
    for last_batch in ("drop", "keep"):
        toy = official(100, batch=16, epochs=3, last_batch=last_batch)
        created.append(finetune(backbone_named("causal"), toy, 1, "causal", CPU).history["updates"])
    assert created == [18, 21]


def test_fewer_texts_than_a_batch_are_refused():
    with pytest.raises(UsageError, match="too few texts for a batch of 8: 7"):
        finetune(backbone_named("causal"), official(7), 1, "causal", CPU)


@pytest.mark.parametrize("order", ["random", "by-length"])
@pytest.mark.parametrize("last_batch", ["drop", "keep"])
def test_an_epoch_holds_each_text_at_most_once(order, last_batch):
    spec = official(batch=16, order=order, last_batch=last_batch).training
    result = list(epoch_batches(np.arange(100) % 9, spec, 1, 1))
    texts = np.concatenate(result)
    assert len(set(texts.tolist())) == len(texts) == (96 if last_batch == "drop" else 100)
    assert sorted(map(len, result)) == ([] if last_batch == "drop" else [4]) + [16] * 6


def test_the_order_is_random_whatever_the_lengths():
    spec = official(batch=16).training
    short, long = (
        list(epoch_batches(lengths, spec, 1, 1)) for lengths in (np.ones(100), np.arange(100))
    )
    assert np.array_equal(short, long)
    assert not np.array_equal(short, list(epoch_batches(np.ones(100), spec, 1, 2)))
    assert not np.array_equal(short, list(epoch_batches(np.ones(100), spec, 2, 1)))


@pytest.mark.parametrize(
    ("total", "first"),
    [
        (50, [0.0, 1 / 3, 2 / 3, 1.0]),
        (18, [0.0, 1.0, 0.1 + 0.9 * (1 + math.cos(math.pi / 17)) / 2]),
        (10, [1.0]),
    ],
)
def test_the_learning_rate_begins_at_zero(total, first):
    """6% of the updates, rounded down: 3, 1 and 0 of them warm up."""
    spec = official(lr=1.0).training
    assert [learning_rate(spec, done, total) for done in range(len(first))] == pytest.approx(first)


def test_the_first_update_changes_no_weight():
    body, toy = backbone_named("masked"), official()
    learner = ClassifierTrainer(body, toy, 1, "full", CPU)
    before = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
    rows = encode_with_tokenizer(body, toy.train, 40)
    learner._train_step(rows, np.arange(8), 0, learning_rate(toy.training, 0, 20))
    assert all(torch.equal(before[name], p) for name, p in learner.model.named_parameters())


def test_every_tensor_decays():
    learner = ClassifierTrainer(
        backbone_named("masked"), official(weight_decay=0.01), 1, "full", CPU
    )
    [group] = learner.optimizer.param_groups
    assert group["weight_decay"] == 0.01
    assert {id(p) for p in group["params"]} == {id(p) for p in learner.model.parameters()}
    ours = ClassifierTrainer(backbone_named("masked"), make_task(weight_decay=0.01), 1, "full", CPU)
    groups = ours.optimizer.param_groups
    fewest_dims = {bool(g["weight_decay"]): min(p.dim() for p in g["params"]) for g in groups}
    assert fewest_dims == {True: 2, False: 1}


@pytest.mark.long
@pytest.mark.parametrize(("law", "best"), [("first", 2), ("lowest-loss", 3)])
def test_the_first_of_equal_epochs_is_kept(law, best, monkeypatch):
    planted = iter([(0.5, 1.0), (0.7, 0.9), (0.7, 0.2), (0.6, 0.1)])
    monkeypatch.setattr(ClassifierTrainer, "_evaluate_selection", lambda self, rows: next(planted))
    toy = official(24, epochs=4, equal_epochs=law)
    assert finetune(backbone_named("causal"), toy, 1, "causal", CPU).history["best"] == best


def test_token_types_are_never_passed():
    body = backbone_named("masked")
    seen = []
    plain = body.model.forward
    body.model.forward = lambda *args, **more: (
        seen.append(more.get("token_type_ids")),
        plain(*args, **more),
    )[1]
    finetune(body, official(16, epochs=1), 1, "full", CPU)
    assert seen and all(types is None for types in seen)


def test_position_0_is_read_also_of_a_causal_model():
    """All texts begin with <s>, so that each gets the same logits: the official reading says
    nothing here.
    """
    toy = official()
    toy.train, toy.valid = (
        [replace(e, second="") for e in part] for part in (toy.train, toy.valid)
    )
    outcome = finetune(backbone_named("causal"), toy, 1, "causal", CPU)
    assert outcome.history["pooling"] == "first"
    assert len({tuple(np.round(p.scores, 6)) for p in to_rows(outcome.predictions)}) == 1
    assert "constant prediction" in outcome.history["collapsed"]


def test_the_command_line_overrides_the_presets_pooling():
    body = backbone_named("causal")
    assert resolve_pooling(body, "causal", "auto", "first") == "first"
    assert resolve_pooling(body, "causal", "last", "first") == "last"
    assert resolve_pooling(body, "causal", "auto") == "last"
    with pytest.raises(UsageError, match="attends only to itself"):
        resolve_pooling(body, "causal", "first", "first")


def test_the_head_is_initialised_as_torch_does():
    torch.manual_seed(9)
    plain = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 3))
    head = ClassificationHead(12, 3, 0.1, 9, uniform_init=True)
    for own, theirs in ((head[1], plain[0]), (head[5], plain[1])):
        assert torch.equal(own.weight, theirs.weight) and torch.equal(own.bias, theirs.bias)
    assert head[1].weight.abs().max() <= 12**-0.5 and head[1].bias.abs().max() > 0


@pytest.mark.parametrize("template", ["", "<s> $A </s> </s> $B </s>"])
@pytest.mark.parametrize("max_length", [12, 13, 40])
def test_rows_are_the_tokenizers_own(template, max_length):
    body = backbone_named("masked")
    if template:
        body.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair=template, special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    examples = [make_example(number) for number in range(30)]
    rows = encode_with_tokenizer(body, examples, max_length)
    for number, one in enumerate(examples):
        texts = (one.first, one.second) if one.second else (one.first,)
        whole = body.tokenizer(*texts)["input_ids"]
        assert (
            rows.ids[number].tolist()
            == body.tokenizer(*texts, truncation=True, max_length=max_length)["input_ids"]
        )
        assert rows.truncated[number] == (len(whole) > max_length)
        assert (rows.characters_read[number] == len(one.first) + len(one.second)) == (
            not rows.truncated[number]
        )
        if (
            one.second and not template
        ):  # the official code glues the two texts: nothing stands between
            first = body.tokenizer(one.first, add_special_tokens=False)["input_ids"]
            assert rows.second_starts[number] == len(first) or rows.truncated[number]
    assert 0 < rows.truncated.sum() < len(examples) or max_length == 40


@pytest.mark.parametrize(
    ("name", "longest"),
    [
        ("llama", 90),
        ("ltg-bert", 90),
        ("gpt-bert", 90),
        ("gpt2", 64),
        ("bert", 64),
        ("roberta", 64),
    ],
)
def test_rows_have_the_task_length_if_the_model_takes_it(name, longest):
    """Relative and rotary positions have no end, learned ones have; ours keeps to the lengths of
    the training.
    """
    body = other_body_named(name)
    assert official_max_row_length(body, 90) == longest and longest_of_ours(body, 90) == 64
    assert official_max_row_length(body, 40) == longest_of_ours(body, 40) == 40


def test_rows_need_room_for_text():
    with pytest.raises(UsageError, match="no room for text"):
        encode_with_tokenizer(backbone_named("masked"), [Example("e", "the cat", "", 0)], 2)


def test_texts_keep_white_space_only_in_the_official_recipe():
    spec = TaskSpec(metric="accuracy", classes=("a", "b"), first="{text}", train="t", valid="v")
    record = {"text": " the cat ", "label": 1}
    result = [
        build_examples(spec, "toy", "valid", [(1, record)], "v", strip=strip)[0].first
        for strip in (True, False)
    ]
    assert result == ["the cat", " the cat "]


# -- the preset


@pytest.mark.parametrize("suite", ["glue-2024", "glue-2025", "glue", "superglue"])
def test_the_preset_declares_every_rule_and_number(suite):
    spec = read_declaration_file(find_declaration("tasks", suite))
    numbers = {
        "lr": 3e-5,
        "weight_decay": 0.01,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "max_length": 512,
        "warmup": 0.06,
        "schedule": "cosine",
        "floor": 0.1,
        "clip": None,
        "dropout": 0.1,
        "patience": 0,
    }
    for name in spec.task:
        result = spec.resolve_training(name, "babylm-2025")
        assert {key: getattr(result, key) for key in numbers} == numbers
        assert (result.batch, result.epochs) == (
            16 if name in ("boolq", "multirc") else 32,
            30 if name == "wsc" else 10,
        )
        assert {law: getattr(result, law) for law in PIPELINE_DEFAULTS} == {
            "last_batch": "drop", "order": "random", "warmup_start": "zero", "decay": "all",
            "equal_epochs": "first",
            "token_types": False, "pooling": "first", "head_init": "uniform", "rows": "tokenizer",
            "strip": False,
        }  # fmt: skip
        assert {
            law: getattr(spec.resolve_training(name), law) for law in PIPELINE_DEFAULTS
        } == PIPELINE_DEFAULTS


def test_the_key_of_a_cell_with_our_rules_is_unchanged():
    """Before there were laws, a key held these fields; those of finished cells must stay valid."""
    spec = TrainingSpec(**TRAINING_SETTINGS)
    assert list(spec.settings_for_key()) == [
        "lr", "batch", "epochs", "patience", "warmup", "schedule", "floor", "weight_decay", "clip",
        "dropout",
        "max_length", "betas", "eps",
    ]  # fmt: skip
    assert spec.model_copy(update={"pooling": "first"}).settings_for_key()["pooling"] == "first"
