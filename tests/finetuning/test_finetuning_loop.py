"""The loop against a plain reference: selection, collapse, seeds, accumulation."""

from __future__ import annotations

import copy
import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from finetuning_helpers import make_backbone, make_example, make_task
from hypothesis import given
from hypothesis import strategies as st
from prediction_rows import to_rows
from tiny_models import build_model
from torch.nn import functional

from antlm_bench.errors import DataError, MethodNotSupported, TrainingError, UsageError
from antlm_bench.finetuning import loop
from antlm_bench.finetuning.batches import (
    UPDATES_PER_LENGTH_BLOCK,
    length_grouped_batches,
    micro_batches,
)
from antlm_bench.finetuning.data import encode_examples, resolve_pad_id
from antlm_bench.finetuning.heads import build_classifier
from antlm_bench.finetuning.loop import (
    ClassifierTrainer,
    FinetuneSettings,
    finetune,
    split_examples,
)
from antlm_bench.types import Example

CPU = FinetuneSettings(device="cpu")
DROPPED = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}


@pytest.fixture(scope="module")
def causal():
    return make_backbone(build_model("causal", 0), "causal")


@pytest.fixture(scope="module")
def masked():
    return make_backbone(build_model("masked", 0, **DROPPED), "masked")


@pytest.fixture(scope="module")
def gpt2():
    return make_backbone(
        build_model("", 0, "GPT2LMHeadModel", n_positions=64, attn_pdrop=0.3, resid_pdrop=0.2),
        "causal",
    )


class RecordingCallback:
    def __init__(self) -> None:
        self.steps, self.epochs = [], []

    def on_step_end(self, updates_done: int, total_updates: int, loss: float) -> None:
        self.steps.append((updates_done, total_updates, loss))

    def on_epoch_end(self, epoch: int, selection_score: float) -> None:
        self.epochs.append((epoch, selection_score))


# ---- the reference


def plainly(body, toy, seed: int, attention: str, pooling: str):
    """Losses of every update and final log-probabilities of the scored texts: whole batches padded
    to their longest, a mask always, torch's own AdamW, and no dropout.
    """
    model = copy.deepcopy(body.model)
    spec = toy.training
    head = build_classifier(body, attention, pooling, 2, 0.0, seed).head
    rows, valid = (
        encode_examples(body, attention, part, spec.max_length) for part in (toy.train, toy.valid)
    )

    def logits(these, members):
        longest = max(len(these.ids[i]) for i in members)
        ids = torch.zeros(len(members), longest, dtype=torch.long)
        mask, types = torch.zeros_like(ids), torch.zeros_like(ids)
        for line, i in enumerate(members):
            n = len(these.ids[i])
            ids[line, :n], mask[line, :n] = torch.tensor(these.ids[i].astype(int)), 1
            types[line, these.second_starts[i] : n] = 1
        more = {"token_type_ids": types} if body.kind == "masked" else {}
        hidden = model(input_ids=ids, attention_mask=mask, **more)[0]
        read = {
            "last": torch.stack([h[m.sum() - 1] for h, m in zip(hidden, mask, strict=True)]),
            "first": hidden[:, 0],
            "mean": torch.stack([h[: m.sum()].mean(0) for h, m in zip(hidden, mask, strict=True)]),
        }[pooling]
        x = functional.layer_norm(read, read.shape[-1:])
        x = functional.gelu(functional.linear(x, head[1].weight, head[1].bias))
        return functional.linear(
            functional.layer_norm(x, x.shape[-1:]), head[5].weight, head[5].bias
        )

    everything = [*model.named_parameters(), *head.named_parameters()]
    groups = [
        {"params": [p for _, p in everything if p.dim() >= 2], "weight_decay": spec.weight_decay},
        {"params": [p for _, p in everything if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas, eps=spec.eps)
    per_epoch = math.ceil(len(rows) / spec.batch)
    total, warm, losses = per_epoch * spec.epochs, spec.warmup * per_epoch * spec.epochs, []
    model.train()
    for epoch in range(1, spec.epochs + 1):
        for chosen in length_grouped_batches(rows.lengths, spec.batch, seed, epoch):
            step = len(losses)
            for group in optimizer.param_groups:
                down = min(1, (total - step) / (total - warm))
                group["lr"] = spec.lr * ((step + 1) / warm if step + 1 < warm else down)
            loss = functional.cross_entropy(logits(rows, chosen), torch.tensor(rows.gold[chosen]))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([p for _, p in everything], spec.clip)
            optimizer.step()
            losses.append(loss.item())
    model.eval()
    with torch.no_grad():
        return losses, logits(valid, range(len(valid))).log_softmax(-1).numpy()


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "pooling"), [("causal", "last"), ("masked", "first"), ("masked", "mean")]
)
def test_the_loop_learns_what_a_plain_one_learns(kind, pooling):
    off = (
        {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        if kind == "masked"
        else {}
    )
    body, attention = (
        make_backbone(build_model(kind, 0, **off), kind),
        "causal" if kind == "causal" else "full",
    )
    toy = make_task(200, 20, epochs=2, dropout=0.0, select="valid", patience=0)
    callback = RecordingCallback()
    outcome = finetune(
        body, toy, 3, attention, replace(CPU, pooling=pooling, batch_tokens=100), callback
    )
    losses, logp = plainly(body, toy, 3, attention, pooling)
    np.testing.assert_allclose([loss for _, _, loss in callback.steps], losses, rtol=1e-4)
    if outcome.history["best"] == 2:
        np.testing.assert_allclose(
            [p.scores for p in to_rows(outcome.predictions)], logp, atol=2e-3
        )
    assert outcome.history["best"] == 2


# ---- what can be learnt, and what cannot


@pytest.mark.long
def test_a_task_that_can_be_learnt_is_learnt_to_the_last_text(causal):
    outcome = finetune(causal, make_task(300, 80, epochs=6), 1, "causal", CPU)
    assert all(p.pred == p.gold for p in to_rows(outcome.predictions))
    assert outcome.history["collapsed"] == []
    assert outcome.history["pooling"] == "last"


@pytest.mark.long
def test_which_of_two_texts_is_meant_can_be_learnt(masked):
    outcome = finetune(masked, make_task(500, 80, "second", epochs=8, lr=2e-3), 1, "full", CPU)
    assert sum(p.pred == p.gold for p in to_rows(outcome.predictions)) >= 70


@pytest.mark.long
def test_random_labels_stay_at_chance(causal):
    outcome = finetune(causal, make_task(200, 400, "coin", epochs=3), 1, "causal", CPU)
    right = sum(p.pred == p.gold for p in to_rows(outcome.predictions))
    assert abs(right - 200) < 3.5 * 10  # 3.5 standard deviations of 400 coins


def test_predictions_are_of_the_scored_texts_in_order(causal):
    toy = make_task(60, 20, epochs=1)
    result = to_rows(finetune(causal, toy, 1, "causal", CPU).predictions)
    rows = encode_examples(causal, "causal", toy.valid, 40)
    assert [p.id for p in result] == [e.id for e in toy.valid]
    assert [p.gold for p in result] == [e.gold for e in toy.valid]
    for p, ids, e in zip(result, rows.ids, toy.valid, strict=True):
        assert np.isclose(np.exp(p.scores).sum(), 1) and p.pred == int(np.argmax(p.scores))
        assert p.tokens == (len(ids),) * 2 and p.characters == (len(e.first) + len(e.second),) * 2
        assert p.labels == {"task": "word"} and p.flags == ()


# ---- seeds, accumulation


@pytest.mark.long
def test_a_seed_repeats_bit_for_bit_and_another_differs(masked):
    toy = make_task(80, 30, epochs=2)
    one, same, other = (
        to_rows(finetune(masked, toy, seed, "full", CPU).predictions) for seed in (1, 1, 2)
    )
    assert one == same
    assert [p.scores for p in one] != [p.scores for p in other]


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_bf16_repeats_bit_for_bit_and_learns_like_fp32(kind, request):
    body, toy = request.getfixturevalue(kind), make_task(48, 20, epochs=1)
    attention = body.native_attention
    one, same, fp32 = (
        finetune(body, toy, 1, attention, replace(CPU, dtype=dtype))
        for dtype in ("bfloat16", "bfloat16", "float32")
    )
    scores = [[p.scores for p in to_rows(r.predictions)] for r in (one, same, fp32)]
    assert scores[0] == scores[1] != scores[2]
    losses = [r.history["epochs"][0]["loss"] for r in (one, fp32)]
    assert losses[0] == pytest.approx(losses[1], abs=0.02)


def test_finetuning_leaves_the_backbone_unchanged(masked):
    before = {name: p.clone() for name, p in masked.model.named_parameters()}
    finetune(masked, make_task(60, 20, epochs=1), 1, "full", CPU)
    finetune(masked, make_task(60, 20, epochs=1), 1, "full", replace(CPU, lora_rank=2))
    assert {n: p.shape for n, p in before.items()} == {
        n: p.shape for n, p in masked.model.named_parameters()
    }
    assert all(torch.equal(p, before[name]) for name, p in masked.model.named_parameters())
    assert not masked.model.training and all(p.requires_grad for p in masked.model.parameters())


def gradients(body, attention: str, tokens: int, dropout: float = 0.3):
    learner = ClassifierTrainer(
        body, make_task(32, 10, dropout=dropout), 1, attention, replace(CPU, batch_tokens=tokens)
    )
    rows = encode_examples(body, attention, learner.task.train, 40)
    result = {}
    learner.optimizer.step = lambda: result.update(
        {name: p.grad.clone() for name, p in learner.model.named_parameters() if p.grad is not None}
    )
    learner.task.training = learner.task.training.model_copy(update={"clip": None})
    loss = learner._train_step(rows, np.arange(32), 0, 1e-3)
    return loss, result


@pytest.mark.long
@pytest.mark.parametrize("kind", ["causal", "masked", "gpt2"])
def test_parts_of_an_update_add_up_to_the_whole_with_dropout(kind, request):
    body = request.getfixturevalue(kind)
    attention = body.native_attention
    (whole, slopes), (parted, added) = (
        gradients(body, attention, tokens) for tokens in (10_000, 60)
    )
    assert parted == pytest.approx(whole, abs=1e-6)
    assert slopes.keys() == added.keys() and slopes
    for name, slope in slopes.items():
        torch.testing.assert_close(added[name], slope, atol=1e-6, rtol=1e-4)


def test_dropout_is_active_in_training(masked):
    assert gradients(masked, "full", 60)[0] != pytest.approx(
        gradients(masked, "full", 60, dropout=0.0)[0], abs=1e-6
    )


# ---- selection and collapse


@pytest.mark.long
@pytest.mark.parametrize(
    ("scores", "losses", "best", "epochs"),
    [
        ([0.5, 0.9, 0.7, 0.6], [1, 1, 1, 1], 2, 4),
        ([0.5, 0.5, 0.5, 0.5], [1, 0.5, 0.7, 0.6], 2, 4),
        ([0.5, 0.6, 0.7, 0.8], [1, 2, 3, 4], 4, 5),
        ([0.9, 0.6, 0.7, 0.8], [1, 1, 1, 1], 1, 3),
    ],
)
def test_the_best_epoch_is_predicted_from_and_patience_ends_it(
    causal, monkeypatch, scores, losses, best, epochs
):
    weights = []
    planted = iter([*zip(scores, losses, strict=True), (0.0, 9.0), (0.0, 9.0)])

    def selection(self, rows):
        weights.append({name: p.detach().clone() for name, p in self.model.named_parameters()})
        return next(planted)

    kept = []
    monkeypatch.setattr(ClassifierTrainer, "_evaluate_selection", selection)
    read = ClassifierTrainer.predict_logprobs
    monkeypatch.setattr(
        ClassifierTrainer,
        "predict_logprobs",
        lambda self, rows: (kept.append(self), read(self, rows))[1],
    )
    history = finetune(causal, make_task(40, 20, epochs=5, patience=2), 1, "causal", CPU).history
    assert history["best"] == best and len(history["epochs"]) == epochs
    final = dict(kept[-1].model.named_parameters())
    assert all(torch.equal(final[name], value) for name, value in weights[best - 1].items())


def test_the_published_recipe_selects_on_the_scored_texts(causal):
    history = finetune(
        causal, make_task(60, 20, select="valid", epochs=1), 1, "causal", CPU
    ).history
    assert (history["train"], history["selection"], history["valid"]) == (60, 20, 20)
    history = finetune(causal, make_task(60, 20, epochs=1), 1, "causal", CPU).history
    assert (history["train"], history["selection"], history["valid"]) == (54, 6, 20)


def test_a_nan_loss_is_reported_and_the_best_weights_are_used(causal):
    callback = RecordingCallback()
    outcome = finetune(
        causal, make_task(60, 20, lr=1e30, warmup=0.0, clip=None), 1, "causal", CPU, callback
    )
    assert outcome.history["collapsed"][0].startswith("the loss became NaN at update ")
    assert np.isfinite([p.scores for p in to_rows(outcome.predictions)]).all()
    assert outcome.history["best"] == 0


def test_a_constant_prediction_gets_a_warning(causal):
    outcome = finetune(causal, make_task(60, 20, lr=1e-12, epochs=1), 1, "causal", CPU)
    assert outcome.history["collapsed"]


def test_a_loss_that_never_moved_gets_a_warning(causal):
    task = make_task(64, 20, lr=1e-9, epochs=2, dropout=0.0)
    outcome = finetune(causal, task, 1, "causal", CPU)
    assert any(
        warning.startswith("the loss never fell") for warning in outcome.history["collapsed"]
    )


def test_the_callback_receives_every_update_and_epoch(causal):
    callback = RecordingCallback()
    history = finetune(
        causal, make_task(60, 20, epochs=2, batch=20), 1, "causal", CPU, callback
    ).history
    assert [(done, total) for done, total, _ in callback.steps] == [(n, 6) for n in range(1, 7)]
    assert callback.epochs == [(e["epoch"], e["selection"]) for e in history["epochs"]]
    assert history["updates"] == 6


def test_out_of_memory_is_a_training_error_with_a_hint(causal, monkeypatch):
    def full(self, *_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ClassifierTrainer, "_train_step", full)
    with pytest.raises(TrainingError, match="does not fit into memory"):
        finetune(causal, make_task(40, 10), 1, "causal", CPU)


def test_invalid_options_are_refused(causal, masked):
    with pytest.raises(MethodNotSupported, match="cannot run with full attention"):
        finetune(causal, make_task(), 1, "full", CPU)
    with pytest.raises(UsageError, match="attends only to itself"):
        finetune(causal, make_task(), 1, "causal", replace(CPU, pooling="first"))
    with pytest.raises(UsageError, match="unknown pooling"):
        finetune(masked, make_task(), 1, "full", replace(CPU, pooling="middle"))
    with pytest.raises(DataError, match="no rows"):
        finetune(masked, make_task(10, 0), 1, "full", CPU)
    with pytest.raises(DataError, match="cannot be split"):
        finetune(masked, make_task(1, 5), 1, "full", CPU)


# ---- split, order, rate


@pytest.mark.long
@given(
    st.lists(st.integers(0, 2), min_size=30, max_size=120), st.floats(0.1, 0.5), st.integers(0, 9)
)
def test_a_split_holds_its_share_of_every_class(gold, share, seed):
    examples = [Example(str(i), "x", "", g) for i, g in enumerate(gold)]
    train, held = split_examples(examples, share, seed)
    assert sorted(train + held, key=lambda e: int(e.id)) == examples
    assert [int(e.id) for e in train] == sorted(int(e.id) for e in train)
    for cls, count in Counter(gold).items():
        assert abs(sum(e.gold == cls for e in held) - share * count) <= 0.5 + 1e-9
    assert split_examples(examples, share, seed) == (train, held)


def test_groups_stay_together_and_seeds_split_differently():
    examples = [replace(make_example(i), group=f"p{i // 7}") for i in range(400)]
    train, held = split_examples(examples, 0.2, 1)
    assert not {e.group for e in train} & {e.group for e in held}
    assert 60 <= len(held) <= 100
    assert split_examples(examples, 0.2, 2)[1] != held


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 200))
def test_parts_hold_every_row_once_sorted_and_under_the_budget(lengths, budget):
    lengths = np.array(lengths)
    result = list(micro_batches(lengths, np.arange(len(lengths)), budget))
    assert sorted(np.concatenate(result)) == list(range(len(lengths)))
    assert np.all(np.diff(lengths[np.concatenate(result)]) >= 0)
    assert all(len(part) == 1 or len(part) * lengths[part].max() <= budget for part in result)


def test_an_epoch_shows_every_example_once_in_its_own_order():
    lengths = np.arange(50) % 7
    first, second = (list(length_grouped_batches(lengths, 16, 1, epoch)) for epoch in (1, 2))
    assert sorted(map(len, first)) == [2, 16, 16, 16]
    assert sorted(np.concatenate(first)) == list(range(50))
    assert not np.array_equal(np.concatenate(first), np.concatenate(second))


@given(st.lists(st.integers(1, 300), min_size=1, max_size=400), st.integers(1, 32))
def test_an_update_holds_texts_of_like_length(lengths, batch):
    """Within a block of NEAR updates no text of one update lies between two of another."""
    lengths = np.array(lengths)
    result = list(length_grouped_batches(lengths, batch, 1, 1))
    assert sorted(np.concatenate(result)) == list(range(len(lengths)))
    assert len(result) == math.ceil(len(lengths) / batch)
    if len(lengths) <= UPDATES_PER_LENGTH_BLOCK * batch:
        ends = sorted((lengths[chosen].min(), lengths[chosen].max()) for chosen in result)
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(ends))


@pytest.mark.parametrize(
    ("schedule", "floor", "expected"),
    [
        ("linear", 0.0, [0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ("constant", 0.0, [0.5] + [1] * 9),
        (
            "cosine",
            0.1,
            [0.5, 1, 1] + [0.1 + 0.9 * (1 + math.cos(math.pi * i / 8)) / 2 for i in range(1, 8)],
        ),
    ],
)
def test_the_learning_rate_warms_up_and_comes_down(schedule, floor, expected):
    spec = make_task(lr=1.0, warmup=0.2, schedule=schedule, floor=floor).training
    assert [loop.learning_rate(spec, done, 10) for done in range(10)] == pytest.approx(expected)


def test_the_padding_id_has_an_embedding(masked):
    assert resolve_pad_id(masked) == 0
