"""Schedules against brute force and hand computation: phases, rows and rates."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recipe_helpers import make_phases, make_recipe

from antlm_bench.errors import DataError, DeclarationError
from antlm_bench.training.recipe import OptimizerSpec, read_recipe
from antlm_bench.training.schedule import (
    Step,
    _rows_per_step,
    count_rows,
    count_steps,
    describe_plan,
    learning_rate,
    list_milestones,
    milestone_name,
    plan_steps,
)

ANTLM = make_phases((4, 1, 0), (16, 0, 1), (4, 1, 0))


def passes(steps: list[Step]) -> list[list[Step]]:
    return [list(group) for _, group in itertools.groupby(steps, key=lambda step: step.pass_index)]


@pytest.mark.long
@settings(deadline=None)
@given(
    tokens=st.integers(31, 5000),
    batch=st.integers(16, 600),
    offset=st.sampled_from(["fixed", "random"]),
    lasts=st.sampled_from([(4, 16, 4), (6, 60, 6), (1, 4, 1)]),
)
def test_blocks_switch_exactly_where_epochs_end(
    tokens: int, batch: int, offset: str, lasts: tuple[int, int, int]
) -> None:
    phases = make_phases(
        *((n, causal, 1 - causal) for n, causal in zip(lasts, (1, 0, 1), strict=True))
    )
    recipe = make_recipe(**phases, batch={"tokens": batch}, corpus={"offset": offset})
    steps = plan_steps(recipe, tokens)
    epochs = passes(steps)
    assert len(epochs) == sum(lasts)
    kinds = [
        "causal" if all(s.num_causal_rows == s.num_rows for s in epoch) else "masked"
        for epoch in epochs
    ]
    assert kinds == ["causal"] * lasts[0] + ["masked"] * lasts[1] + ["causal"] * lasts[2]
    assert all(step.num_causal_rows in (0, step.num_rows) for step in steps)
    assert [s.index for s in steps if s.objective_switch] == [
        epochs[lasts[0]][0].index,
        epochs[-lasts[2]][0].index,
    ]
    assert [s.phase for s in steps] == [
        i for i, n in enumerate(lasts) for _ in range(n * len(epochs[0]))
    ]


@pytest.mark.long
@given(
    tokens=st.integers(31, 5000),
    batch=st.integers(16, 600),
    offset=st.sampled_from(["fixed", "random"]),
)
def test_every_row_of_an_epoch_is_taken_exactly_once(tokens: int, batch: int, offset: str) -> None:
    recipe = make_recipe(batch={"tokens": batch}, corpus={"offset": offset}, **ANTLM)
    existing = (tokens - 15) // 16 if offset == "random" else tokens // 16
    for epoch in passes(plan_steps(recipe, tokens)):
        taken = [
            row for step in epoch for row in range(step.first_row, step.first_row + step.num_rows)
        ]
        assert taken == list(range(existing))


@given(offset=st.integers(0, 15), tokens=st.integers(31, 400))
def test_no_offset_shortens_a_pass(offset: int, tokens: int) -> None:
    whole = [start for start in range(offset, tokens, 16) if start + 16 <= tokens]
    assert count_rows(tokens, 16, "random") <= len(whole)
    assert count_rows(tokens, 16, "fixed") == tokens // 16
    last = (
        count_rows(tokens, 16, "row") - 1
    ) * 16 + 15  # the latest place at which the last row may begin
    assert last + 16 <= tokens < last + 3 * 16


@pytest.mark.long
@given(
    tokens=st.integers(64, 20_000),
    growth=st.integers(1, 8),
    longer=st.booleans(),
    epochs=st.integers(1, 12),
)
def test_tokens_seen_are_about_epochs_times_corpus(
    tokens: int, growth: int, longer: bool, epochs: int
) -> None:
    batch = {
        "tokens": 64,
        "final_tokens": 64 * growth,
        "longer": [[0.7, 32], [0.9, 64]] if longer else [],
    }
    recipe = make_recipe(batch=batch, phase=[{"epochs": epochs, "causal": 1}])
    steps = plan_steps(recipe, tokens)
    assert all(
        step.num_rows >= 1 and step.row_length * step.num_rows <= 64 * growth for step in steps
    )
    assert [step.tokens_before for step in steps] == [
        0,
        *itertools.accumulate(step.num_tokens for step in steps),
    ][:-1]
    # Lost are remains shorter than a row and the passes that a longer row breaks off; steps are
    # rounded to whole ones.
    spare = 64 * growth * (2 + 2 * longer) + epochs * (64 if longer else 16)
    seen = sum(step.num_tokens for step in steps)
    assert abs(seen - epochs * tokens) <= spare + 0.1 * epochs * tokens * (growth > 1 or longer)


def test_a_batch_larger_than_the_corpus_is_the_whole_corpus() -> None:
    steps = plan_steps(
        make_recipe(
            batch={"tokens": 6400, "final_tokens": 25_600}, phase=[{"epochs": 10, "causal": 1}]
        ),
        320,
    )
    assert len(steps) == 10
    assert all(step.num_rows == 20 for step in steps)


def test_blocks_of_a_growing_batch_end_by_epochs_not_by_steps() -> None:
    recipe = make_recipe(
        **make_phases((10, 1, 0), (10, 0, 1)), batch={"tokens": 16, "final_tokens": 1584}
    )
    steps = plan_steps(recipe, 160_000)
    causal = sum(step.num_tokens for step in steps if step.num_causal_rows)
    assert causal / sum(step.num_tokens for step in steps) == pytest.approx(0.5, abs=0.02)
    assert sum(step.num_causal_rows > 0 for step in steps) / len(steps) == pytest.approx(
        0.5**0.5, abs=0.02
    )


def test_gpt_bert_keeps_its_mixture_in_every_batch() -> None:
    mixture = make_phases((2, 1, 15))
    steps = plan_steps(make_recipe(**mixture, batch={"tokens": 16 * 64}), 16 * 64 * 5)
    assert {(step.num_rows, step.num_causal_rows, step.loss_weights) for step in steps} == {
        (64, 4, (1 / 16, 15 / 16))
    }
    (small, *_) = plan_steps(
        make_recipe(**mixture, batch={"tokens": 64}), 640
    )  # 4 rows: one is causal, but weighs a sixteenth
    assert (small.num_rows, small.num_causal_rows, small.loss_weights) == (4, 1, (1 / 16, 15 / 16))
    (single, *_) = plan_steps(make_recipe(**mixture, batch={"tokens": 16}), 160)
    assert (single.num_rows, single.num_causal_rows, single.loss_weights) == (1, 0, (0.0, 1.0))
    assert not any(step.objective_switch for step in steps)


def test_batch_length_and_masking_move_as_gpt_bert_s() -> None:
    recipe = make_recipe(
        **make_phases((1000, 1, 15), unit="steps"),
        objective={"rate": 0.3, "final_rate": 0.15},
        batch={"tokens": 256, "final_tokens": 1024, "longer": [[0.7, 32], [0.9, 64]]},
    )
    steps = plan_steps(recipe, 1_000_000)
    assert len(steps) == 1000
    assert [
        n for n, s in enumerate(steps) if n == 0 or s.row_length != steps[n - 1].row_length
    ] == [0, 700, 900]
    assert [steps[n].row_length for n in (0, 699, 700, 899, 900, 999)] == [16, 16, 32, 32, 64, 64]
    assert [steps[n].num_tokens for n in (0, 500, 700, 950)] == [
        256,
        640,
        800,
        960,
    ]  # whole rows of 256 + 768 n / 1000
    assert [steps[n].mask_rate for n in (0, 500)] == pytest.approx([0.3, 0.225])
    assert steps[-1].mask_rate == pytest.approx(0.15, abs=2e-4)
    assert [steps[n].first_row for n in (700, 900)] == [
        0,
        0,
    ]  # rows of another length are another pass


def test_phases_in_steps_last_as_many() -> None:
    recipe = make_recipe(**make_phases((3, 1, 0), (9, 0, 1), unit="steps"))
    assert [step.phase for step in plan_steps(recipe, 160)] == [0] * 3 + [1] * 9


def test_a_corpus_that_fills_no_row_is_refused() -> None:
    with pytest.raises(DataError, match="15 tokens, less than one row of 16"):
        plan_steps(make_recipe(), 15)
    with pytest.raises(DataError, match="less than one row of 32"):
        plan_steps(make_recipe(batch={"longer": [[0.9, 32]]}), 31)
    assert count_steps(make_recipe(), 16) == 2


def spec(**settings: object) -> OptimizerSpec:
    return OptimizerSpec.model_validate({"name": "lamb", "lr": 1.0, **settings})


def test_learning_rates_are_those_computed_by_hand() -> None:
    rates = [learning_rate(spec(schedule="linear", warmup_steps=2), step, 6) for step in range(6)]
    assert rates == pytest.approx([0.0, 0.5, 1.0, 0.75, 0.5, 0.25])
    rates = [learning_rate(spec(schedule="cosine", final=0.1), step, 4) for step in range(4)]
    half = math.sqrt(0.5)
    assert rates == pytest.approx([1.0, 0.55 + 0.45 * half, 0.55, 0.55 - 0.45 * half])
    rates = [
        learning_rate(spec(schedule="constant", warmup=0.2, cooldown=0.3), step, 10)
        for step in range(10)
    ]
    assert rates == pytest.approx([0.0, 0.5, *[1.0] * 6, 2 / 3, 1 / 3])
    rates = [
        learning_rate(spec(schedule="cosine", final=0.1, cooldown=0.2), step, 10)
        for step in (7, 8, 9)
    ]
    last = 0.55 + 0.45 * math.cos(math.pi * 7 / 10)
    assert rates == pytest.approx([last, 0.1, 0.05])
    assert learning_rate(spec(warmup=0.019), 0, 100) == 0.0  # int(1.9) = 1 step of warm-up
    assert learning_rate(spec(warmup=0.019), 1, 100) == 1.0


def test_rates_are_those_of_the_original_schedulers(cases_root: Path) -> None:
    text = (cases_root / "original" / "training" / "schedules.json").read_text(encoding="utf-8")
    cases = {name: case for name, case in json.loads(text).items() if name != "note"}
    assert len(cases) == 16
    for name, case in cases.items():
        message = dict(part.split("=") for part in name.split()[1:])
        total, final = int(message["total"]), 0.0 if name.startswith("babyllama") else 0.1
        shape = {key: float(message[key]) for key in ("warmup", "cooldown") if key in message}
        shape |= {"warmup_steps": int(message["warmup_steps"])} if "warmup_steps" in message else {}
        rates = [learning_rate(spec(final=final, **shape), step, total) for step in range(total)]
        assert rates == pytest.approx(case["values"][:-1], abs=1e-12), name


def test_gpt_bert_s_batches_are_those_of_the_original_code(cases_root: Path) -> None:
    """The recorded function is asked when a pass begins: here every step begins one."""
    text = (cases_root / "original" / "training" / "gpt_bert_batches.json").read_text(
        encoding="utf-8"
    )
    for script, name in zip(
        json.loads(text)["schedules"], ("gpt-bert-10m", "gpt-bert-100m"), strict=True
    ):
        defaults, recipe = script["defaults"], read_recipe(name)
        assert recipe.optimizer.lr == defaults["learning_rate"]
        assert (recipe.optimizer.warmup, recipe.optimizer.cooldown) == (
            defaults["warmup_proportion"], defaults["cooldown_proportion"],
        )  # fmt: skip
        assert sum(phase.steps or 0 for phase in recipe.phase) == defaults["max_steps"]
        assert (
            recipe.optimizer.ema == defaults["ema_decay"]
            and recipe.optimizer.clip == defaults["max_gradient"]
        )
        for total in (100, 7812):
            phase = f"phase=[{{steps={total}, causal=1, masked=15}}]"
            steps = plan_steps(
                read_recipe(name, "", [phase]), 1023
            )  # one row of the longest: a step is a pass
            for row in (row for row in script["rows"] if row["max_steps"] == total):
                share = row["global_step"] / total
                assert steps[row["global_step"]].row_length == row["seq_length"]
                assert (
                    _rows_per_step(recipe, share, row["seq_length"])
                    == row["global_batch_sequences"]
                )
                assert steps[row["global_step"]].mask_rate == pytest.approx(0.30 - 0.15 * share)


def test_a_batch_may_change_only_where_a_pass_begins() -> None:
    batch = {"tokens": 32, "final_tokens": 160, "longer": [[0.5, 32]], "grows": "pass"}
    steps = plan_steps(make_recipe(**make_phases((40, 1, 0), unit="steps"), batch=batch), 16 * 24)
    for one in passes(steps):
        assert len({step.row_length for step in one}) == 1
        assert (
            len({step.num_rows for step in one[:-1]}) <= 1 and one[-1].num_rows <= one[0].num_rows
        )
        share = one[0].index / 40
        assert one[0].row_length == (32 if one[0].index + 1 >= 20 else 16)
        assert one[0].num_rows == min(
            24 * 16 // one[0].row_length, round((32 + 128 * share) / one[0].row_length)
        )


@given(
    total=st.integers(1, 400),
    schedule=st.sampled_from(["cosine", "linear", "constant"]),
    warmup=st.floats(0, 0.5),
    cooldown=st.floats(0, 0.5),
    final=st.floats(1e-3, 1),
)
def test_a_rate_rises_then_falls_and_is_zero_only_at_the_start(
    total: int, schedule: str, warmup: float, cooldown: float, final: float
) -> None:
    one = spec(schedule=schedule, warmup=warmup, cooldown=cooldown, final=final)
    rates = [learning_rate(one, step, total) for step in range(total)]
    top = rates.index(max(rates))
    assert all(0 < rate <= 1 + 1e-12 for rate in rates[1:])
    assert 0 <= rates[0] <= 1
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(rates[: top + 1]))
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(rates[top:]))


def test_a_schedule_spans_the_run_or_each_phase() -> None:
    optimizer = {"schedule": "linear", "warmup_steps": 1, "lr": 1.0}
    run = plan_steps(make_recipe(**ANTLM, optimizer=optimizer), 64)
    assert [s.lr for s in run] == pytest.approx([0.0, *(1 - n / 23 for n in range(23))])
    phased = plan_steps(make_recipe(**ANTLM, optimizer={**optimizer, "restart": "phase"}), 64)
    block = [0.0, 1.0, 2 / 3, 1 / 3]
    assert [s.lr for s in phased] == pytest.approx(
        [*block, 0.0, *(1 - n / 15 for n in range(15)), *block]
    )


def test_a_warm_up_longer_than_the_run_is_said() -> None:
    recipe = make_recipe(optimizer={"name": "adamw", "lr": 1e-3, "warmup_steps": 10**6})
    plan = describe_plan(recipe, 10_000)
    steps = plan_steps(recipe, 10_000)
    assert plan["steps"] == len(steps)
    assert str(plan["warm-up"]).startswith(f"1,000,000 steps, but there are {len(steps):,}: ")
    assert max(step.lr for step in steps) == pytest.approx(1e-3 * (len(steps) - 1) / 10**6)
    short = make_recipe(optimizer={"name": "adamw", "lr": 1e-3, "warmup_steps": 1})
    assert "warm-up" not in describe_plan(short, 10_000)


def test_a_recipe_replaces_the_milestones() -> None:
    recipe = read_recipe("babyllama", "nano", ["milestones=[2_000_000, 50_000, 300_000]"])
    assert list_milestones(recipe, 0, 299_000, at_end=False) == [50_000]
    assert list_milestones(recipe, 50_000, 2_000_000, at_end=False) == [300_000, 2_000_000]
    assert list_milestones(recipe, 50_000, 299_000, at_end=True) == [300_000]
    names = [milestone_name(words) for words in (50_000, 2_000_000, 1_500_000)]
    assert names == ["chck_50k", "chck_2M", "chck_1500k"]


def test_babylm_milestones_are_the_default() -> None:
    recipe = read_recipe("babyllama")
    assert list_milestones(recipe, 0, 2_000_001, at_end=False) == [1_000_000, 2_000_000]


@pytest.mark.parametrize("value", ["[500]", "[1_500]", "[0]", '["1M"]'])
def test_a_wrong_milestone_is_refused(value: str) -> None:
    with pytest.raises(DeclarationError, match="milestones"):
        read_recipe("babyllama", "", [f"milestones={value}"])
