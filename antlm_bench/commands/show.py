"""`show`: one suite, collection, recipe or method: what it asks, counts and costs, whom to cite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from antlm_bench.commands.list import CATALOG_LISTINGS, count_parameters, describe_objective
from antlm_bench.declarations import catalog, find_declaration, parse_toml, suggest_name
from antlm_bench.errors import DeclarationError, UsageError
from antlm_bench.scoring.methods import METHODS, get_method
from antlm_bench.suites import pairs_csv
from antlm_bench.suites.task_types import TASK_TYPES, Facts, read_declaration
from antlm_bench.training.flops import training_flops
from antlm_bench.training.recipe import EXCLUSIVE_KEYS, Recipe, read_recipe
from antlm_bench.training.schedule import plan_steps

DEFAULT_CORPUS_WORDS = 10_000_000  # BabyLM's strict-small track
TOKENS_PER_WORD = 1.4  # about what a BPE of 16,000 tokens makes of that corpus


def describe_entry(
    kind_and_name: Sequence[str],
    scale: str = "",
    overrides: Sequence[str] = (),
    corpus_words: int | None = None,
) -> tuple[str, Facts]:
    """Return (name, facts in reading order) of a suite, a collection, a recipe or a method.

    kind_and_name: [KIND] NAME, KIND as in `list`. scale, overrides, corpus_words: of a recipe, see
    describe_recipe. Raises DeclarationError, DataError, UsageError.
    """
    if len(kind_and_name) > 2:
        raise UsageError(
            f"{len(kind_and_name)} names", hint="one at a time: antlm-bench show [KIND] NAME"
        )
    name = kind_and_name[-1]
    kind = kind_and_name[0] if len(kind_and_name) == 2 else detect_kind(name)
    if kind not in CATALOG_LISTINGS:
        raise UsageError(
            f"{kind!r} cannot be shown",
            hint=suggest_name(kind, CATALOG_LISTINGS) or f"one of {', '.join(CATALOG_LISTINGS)}",
        )
    if kind == "models":
        return describe_recipe(name, scale, overrides, corpus_words or DEFAULT_CORPUS_WORDS)
    if scale or overrides or corpus_words:
        raise UsageError(
            "only a recipe has scales, numbers to set, and a corpus", location=f"show {name}"
        )
    if kind == "methods":
        return _describe_method(name)
    if pairs_csv.is_pairs_file(name):
        pair = "of pairs: score it with --suite, name its columns with --columns"
        return name, {
            "kind": f"a file {pair}",
            "or": "of texts and labels: finetune on it with --suite, score --valid",
        }
    spec, _ = read_declaration(name)
    facts = TASK_TYPES[spec.task_type].describe(spec)
    return spec.name, {"title": spec.title} | {key: value for key, value in facts.items() if value}


def detect_kind(name: str) -> str:
    """Return "models", "methods" or "suites" for a name or a .toml.

    A .toml is a recipe if it has a key that only recipes have. Raises DeclarationError for an
    unknown name.
    """
    if name in METHODS:
        return "methods"
    models, suites = catalog("models"), catalog("tasks")
    if name in models:
        return "models"
    if name in suites or pairs_csv.is_pairs_file(name):
        return "suites"
    if not name.endswith(".toml"):
        hint = (
            suggest_name(name, [*suites, *models, *METHODS.names()])
            or "`antlm-bench list suites` and `list models` know them"
        )
        raise DeclarationError(f"nothing is called {name!r}", hint=hint)
    keys = parse_toml(find_declaration("models", name)).keys()
    return "models" if {"model", "extends"} & keys else "suites"


def describe_recipe(
    name: str,
    scale: str = "",
    overrides: Sequence[str] = (),
    corpus_words: int = DEFAULT_CORPUS_WORDS,
) -> tuple[str, Facts]:
    """Return (name, facts) of a resolved recipe: its costs on a corpus, then all its settings.

    corpus_words: size of the corpus; the recipe's own limit holds all the same. Raises
    DeclarationError, UsageError, DataError.
    """
    recipe = read_recipe(name, scale, overrides)
    shown_apart = {"name", "title", "scale", "sources", "notes", "difference", "phase"}
    settings = recipe.model_dump(exclude=shown_apart, exclude_none=True)
    phases = [phase.model_dump(exclude_none=True) for phase in recipe.phase]
    facts = {
        "title": recipe.title,
        "objective": describe_objective(recipe),
        "parameters": count_parameters(recipe),
        "estimate": _estimate_costs(recipe, corpus_words),
        "sources": "\n".join(recipe.sources),
        "notes": "\n".join(recipe.notes),
    }
    tables = {f"phase {number}": phase for number, phase in enumerate(phases, 1)}
    return recipe.name + (f" ({scale})" if scale else ""), facts | {"recipe": settings | tables}


def list_recipe_differences(
    kind_and_name: Sequence[str], scale: str = "", overrides: Sequence[str] = ()
) -> list[dict[str, str]]:
    """Return where a recipe departs from its paper: rows of number, paper, ours, why.

    Declared departures come first, then the settings that `scale` and `overrides` replace. Empty
    where the name is no recipe. Raises as describe_recipe.
    """
    name = kind_and_name[-1]
    if (kind_and_name[0] if len(kind_and_name) == 2 else detect_kind(name)) != "models":
        return []
    paper, recipe = read_recipe(name), read_recipe(name, scale, overrides)
    rows = {}
    for row in recipe.difference:
        alternative = " ".join(f"--set {part}" for part in row.option.split())
        why = f"{row.why}; the other way: {alternative}" if alternative else row.why
        rows[row.number] = {
            "number": row.number,
            "paper": row.paper,
            "ours": row.ours,
            "why": why,
        }
    published, ours = (_flatten_settings(spec.model_dump(mode="json")) for spec in (paper, recipe))
    set_by_hand = {override.partition("=")[0].strip() for override in overrides}
    set_by_hand |= {
        f"{table}.{rival}"
        for table, key, rival in EXCLUSIVE_KEYS
        if f"{table}.{key}" in set_by_hand
    }
    for key in [key for key in {**published, **ours} if published.get(key) != ours.get(key)]:
        by_hand = any(f"{key}.".startswith(f"{changed}.") for changed in set_by_hand)
        rows[key] = {
            "number": key,
            "paper": rows.get(key, {}).get("paper", published.get(key, "none")),
            "ours": ours.get(key, "none"),
            "why": "--set" if by_hand else f"scale {scale}",
        }
    return list(rows.values())


def _flatten_settings(tables: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return the training settings of a recipe by dotted key: `optimizer.lr`."""
    prose = ("name", "title", "scale", "sources", "notes", "difference")
    flat: dict[str, str] = {}
    for key, value in tables.items():
        if isinstance(value, Mapping):
            flat |= _flatten_settings(value, f"{prefix}{key}.")
        elif prefix or key not in prose:
            flat[prefix + key] = _format_phases(value) if key == "phase" else str(value)
    return flat


def _format_phases(phases: Sequence[Mapping[str, Any]]) -> str:
    """Return a line such as `4 epochs: causal, 16 epochs: masked`."""
    parts = []
    for phase in phases:
        unit = "epochs" if phase["epochs"] is not None else "steps"
        shares = [f"{phase[name]:g} {name}" for name in ("causal", "masked") if phase[name]]
        parts.append(f"{phase[unit]:,} {unit}: {' and '.join(shares)}")
    return ", ".join(parts)


def _estimate_costs(recipe: Recipe, corpus_words: int) -> Facts:
    """Return tokens, steps and FLOPs. Tokens are a guess, for there is no tokenizer yet."""
    words = min(corpus_words, recipe.corpus.words or corpus_words)
    tokens = round(words * TOKENS_PER_WORD)
    steps = plan_steps(recipe, tokens)
    trained = steps[-1].tokens_before + steps[-1].num_tokens
    return {
        "corpus": f"{words:,} words, assumed to be {TOKENS_PER_WORD} tokens each",
        "tokens": f"{tokens:,} per epoch, {trained:,} in all ({trained / tokens:,.1f} epochs)",
        "steps": len(steps),
        "FLOPs": f"{training_flops(recipe, steps):.1e}"
        + (", of teachers too" if recipe.distil else ""),
    }


def _describe_method(name: str) -> tuple[str, Facts]:
    method = get_method(name)
    needs = f"{' and '.join(sorted(method.attentions))} attention"
    needs += ", a mask token" if method.needs_mask else ""
    return f"{name} (method)", {"score": method.description, "needs": needs}
