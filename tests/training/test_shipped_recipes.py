"""Shipped recipes resolve at every scale, name their sources and keep their claims."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from antlm_bench.declarations import list_declarations, parse_toml
from antlm_bench.training.flops import compute_model_size
from antlm_bench.training.recipe import list_scales, read_recipe
from antlm_bench.training.schedule import plan_steps

RECIPES = sorted(Path(__file__).parents[2].joinpath("models").glob("*.toml"))
NAMES = [path.stem for path in RECIPES]
PROMISED = {
    *(
        "babyllama",
        "babyllama-distilled",
        "llama-360m",
        "gpt2-705m",
        "babyllama-2",
        "ltg-bert",
        "ltg-bert-small",
    ),
    *(
        "elc-bert",
        "elc-bert-zero",
        "elc-bert-normalized",
        "elc-bert-weighted-output",
        "gpt-bert-10m",
        "gpt-bert-100m",
    ),
    *("antlm-babyllama", "antlm-ltg-bert", "clm-then-mlm"),
}
TABLE = re.compile(r"\[\[?([\w.]+)\]\]?")
NUMBER = re.compile(r"(\w+) = (?=[^\"#]*\d)[^\"#]*(#.*)?$")


def test_what_the_literature_has_is_shipped() -> None:
    assert PROMISED <= set(NAMES) <= list_declarations("models").keys()


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_resolves_at_every_scale_and_nano_is_nano(name: str) -> None:
    assert "nano" in list_scales(name)
    sizes = {}
    for scale in ("", *list_scales(name)):
        recipe = read_recipe(name, scale)
        assert recipe.sources and recipe.notes and recipe.title
        steps = plan_steps(recipe, 500_000)
        switches = sum(
            a.causal_share != b.causal_share
            for a, b in zip(recipe.phase, recipe.phase[1:], strict=False)
        )
        assert sum(step.objective_switch for step in steps) == switches
        sizes[scale] = compute_model_size(recipe.model, recipe.tokenizer.vocabulary).parameters
    assert sizes["nano"] < 2e6
    assert sizes["nano"] < sizes.get("small", 1e9) < sizes[""]
    nano = read_recipe(name, "nano")
    assert sum(step.num_tokens for step in plan_steps(nano, 500_000)) <= 13 * 500_000
    assert (
        nano.attentions == read_recipe(name).attentions
        and nano.methods == read_recipe(name).methods
    )


def uncommented(text: str) -> list[str]:
    """`key = number` lines outside of scales that no comment covers: their own, or one `as all of
    this table` above.
    """
    table, covered, bare = "", False, []
    for number, line in enumerate(text.splitlines(), 1):
        if heading := TABLE.fullmatch(line.partition("#")[0].strip()):
            table, covered = heading[1], False
        elif (key := NUMBER.match(line)) and not table.startswith("scale"):
            covered = covered or "as all of this table" in (key[2] or "")
            bare += [] if covered or key[2] else [f"{number}: {line}"]
    return bare


def test_the_check_for_comments_sees_a_bare_number() -> None:
    assert uncommented("[a]\nx = 1 # s\ny = [0.8, 2]\n[scale.b]\nz = 3") == ["3: y = [0.8, 2]"]
    assert uncommented(
        '[[a]]\nx = 1 # s, as all of this table\ny = 2\n[b]\nname = "v2"\nz = 1e-8'
    ) == ["6: z = 1e-8"]


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_every_number_says_where_it_comes_from(path: Path) -> None:
    assert not uncommented(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_scales_are_marked_as_ours(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if "scale" in parse_toml(path):
        assert re.search(r"^# Ours: .*(?:\n#.*)*\n\[+scale\.", text, re.MULTILINE)


def test_hybrids_keep_their_proportions_at_every_scale() -> None:
    for scale in ("", *list_scales("antlm-babyllama")):
        first, middle, last = (
            phase.epochs or 0 for phase in read_recipe("antlm-babyllama", scale).phase
        )
        assert first == last and middle == 4 * first
    for scale in ("", *list_scales("antlm-ltg-bert")):
        first, middle, last = (
            phase.epochs or 0 for phase in read_recipe("antlm-ltg-bert", scale).phase
        )
        assert first == last and middle == 10 * first
    for scale in ("", *list_scales("clm-then-mlm")):
        causal, masked = (
            phase.epochs or phase.steps or 0 for phase in read_recipe("clm-then-mlm", scale).phase
        )
        assert causal / (causal + masked) == pytest.approx(0.25, abs=1e-4)


def test_what_antlm_leaves_open_can_be_varied() -> None:
    changes = [
        "objective.masked=mntp",
        'methods=["causal", "mntp", "fused"]',
        "optimizer.restart=phase",
    ]
    recipe = read_recipe("antlm-babyllama", "nano", [*changes, "optimizer.at_switch=reset"])
    assert (recipe.objective.masked, recipe.optimizer.restart, recipe.optimizer.at_switch) == (
        "mntp",
        "phase",
        "reset",
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_difference_has_a_reason_and_a_working_option(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.difference
    for row in recipe.difference:
        assert row.number and row.paper and row.ours and row.why, row
        if row.option:
            changed = read_recipe(name, "", row.option.split())
            assert changed.model_dump(exclude={"difference"}) != recipe.model_dump(
                exclude={"difference"}
            )


def test_babyllama_2_has_the_authors_numbers() -> None:
    for name in ("babyllama-2", "babyllama-2-teacher"):
        recipe = read_recipe(name)
        assert (
            recipe.optimizer.lr,
            recipe.optimizer.weight_decay,
            recipe.optimizer.warmup_steps,
        ) == (7e-4, 5.0, 600)
        assert (recipe.phase[0].epochs, recipe.batch.tokens, recipe.batch.length) == (
            8,
            128 * 128,
            128,
        )
        assert (recipe.optimizer.clip, recipe.optimizer.betas, recipe.optimizer.eps) == (
            1.0,
            (0.9, 0.999),
            1e-8,
        )
        assert (recipe.corpus.held_out, recipe.corpus.offset) == (0.05, "row")
    distil = read_recipe("babyllama-2").distil
    assert distil is not None and (distil.alpha, distil.temperature, len(distil.teachers)) == (
        0.5,
        1.0,
        2,
    )


@pytest.mark.parametrize("name", NAMES)
def test_teachers_read_what_their_student_reads(name: str) -> None:
    for scale in ("", *list_scales(name)):
        student = read_recipe(name, scale)
        for teacher in student.distil.teachers if student.distil else ():
            teaching = read_recipe(teacher, scale)
            assert (teaching.tokenizer, teaching.corpus) == (student.tokenizer, student.corpus)
            assert teaching.model.positions >= student.batch.max_row_length and not teaching.distil
