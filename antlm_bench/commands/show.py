"""`show`: one declaration as a reader needs it: what it asks, what it counts, what it costs, whom
to cite.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from antlm_bench.commands.list import (
    CATALOG_LISTINGS,
    count_items,
    count_parameters,
    count_scored_texts,
    describe_objective,
)
from antlm_bench.declarations import catalog, find_declaration, parse_toml, suggest_name
from antlm_bench.errors import DeclarationError, UsageError
from antlm_bench.scoring.probes import METHODS, get_method
from antlm_bench.suites import pairs_csv, sources
from antlm_bench.suites.acquisition import AcquisitionSpec
from antlm_bench.suites.classification import ClassificationSpec, TaskSpec
from antlm_bench.suites.collection import CollectionSpec, MemberSpec
from antlm_bench.suites.spec import ExampleSpec, SuiteSpec, read_spec
from antlm_bench.training.flops import training_flops
from antlm_bench.training.recipe import EXCLUSIVE_KEYS, Recipe, read_recipe
from antlm_bench.training.schedule import plan_steps

Facts = Mapping[str, Any]

DEFAULT_CORPUS_WORDS, TOKENS_PER_WORD = (
    10_000_000,
    1.4,
)  # BabyLM's strict-small track; about what a BPE of 16,000 makes of it


def describe_entry(
    kind_and_name: Sequence[str],
    scale: str = "",
    overrides: Sequence[str] = (),
    corpus_words: int | None = None,
) -> tuple[str, Facts]:
    """(name, facts in reading order) of `[KIND] NAME`: a suite, a collection, a recipe or a method;
    KIND as in `list`.

    scale, changes, words: of a recipe, see recipe_details. Raises DeclarationError, DataError,
    UsageError.
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
    spec = read_spec(find_declaration("tasks", name))
    if isinstance(spec, CollectionSpec):
        facts = _describe_collection(spec)
    elif isinstance(spec, AcquisitionSpec):
        facts = _describe_acquisition(spec)
    else:
        facts = (
            _describe_suite(spec) if isinstance(spec, SuiteSpec) else _describe_classification(spec)
        )
    return spec.name, {"title": spec.title} | {key: value for key, value in facts.items() if value}


def detect_kind(name: str) -> str:
    """Which of `models`, `methods` and `suites` a name is; a .toml is a recipe if it has what only
    recipes have.

    Raises DeclarationError for a name of none of them.
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
            suggest_name(name, [*suites, *models, *METHODS])
            or "`antlm-bench list suites` and `list models` know them"
        )
        raise DeclarationError(f"nothing is called {name!r}", hint=hint)
    return (
        "models"
        if {"model", "extends"} & parse_toml(find_declaration("models", name)).keys()
        else "suites"
    )


def describe_recipe(
    name: str,
    scale: str = "",
    overrides: Sequence[str] = (),
    corpus_words: int = DEFAULT_CORPUS_WORDS,
) -> tuple[str, Facts]:
    """(name, facts) of a recipe, resolved: what it costs on a corpus of so many words, then
    everything it says.

    words: of the corpus; the recipe's own limit holds all the same. Raises DeclarationError,
    UsageError, DataError.
    """
    recipe = read_recipe(name, scale, overrides)
    apart = {"name", "title", "scale", "sources", "notes", "difference", "phase"}
    said = recipe.model_dump(exclude=apart, exclude_none=True)
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
    return recipe.name + (f" ({scale})" if scale else ""), facts | {"recipe": said | tables}


def list_recipe_differences(
    kind_and_name: Sequence[str], scale: str = "", overrides: Sequence[str] = ()
) -> list[dict[str, str]]:
    """Return what a recipe does otherwise than its paper: rows of number, paper, ours, why. Empty
    if it is no recipe.

    What the recipe declares comes first, then the numbers that `scale` and `changes` replace.
    Raises as recipe_details.
    """
    name = kind_and_name[-1]
    if (kind_and_name[0] if len(kind_and_name) == 2 else detect_kind(name)) != "models":
        return []
    paper, recipe = read_recipe(name), read_recipe(name, scale, overrides)
    rows = {}
    for row in recipe.difference:
        choice = (
            f"; the other way: {' '.join(f'--set {part}' for part in row.option.split())}"
            if row.option
            else ""
        )
        rows[row.number] = {
            "number": row.number,
            "paper": row.paper,
            "ours": row.ours,
            "why": row.why + choice,
        }
    published, ours = (_flatten_settings(one.model_dump(mode="json")) for one in (paper, recipe))
    set_by_hand = {change.partition("=")[0].strip() for change in overrides}
    set_by_hand |= {
        f"{table}.{rival}"
        for table, key, rival in EXCLUSIVE_KEYS
        if f"{table}.{key}" in set_by_hand
    }
    for key in [key for key in {**published, **ours} if published.get(key) != ours.get(key)]:
        why = (
            "--set"
            if any(f"{key}.".startswith(f"{one}.") for one in set_by_hand)
            else f"scale {scale}"
        )
        declared = rows.get(key, {}).get("paper", published.get(key, "none"))
        rows[key] = {"number": key, "paper": declared, "ours": ours.get(key, "none"), "why": why}
    return list(rows.values())


def _flatten_settings(tables: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """What a recipe says of training, by dotted key: `optimizer.lr`."""
    apart = ("name", "title", "scale", "sources", "notes", "difference")
    flat: dict[str, str] = {}
    for key, value in tables.items():
        if isinstance(value, Mapping):
            flat |= _flatten_settings(value, f"{prefix}{key}.")
        elif prefix or key not in apart:
            flat[prefix + key] = _format_phases(value) if key == "phase" else str(value)
    return flat


def _format_phases(phases: Sequence[Mapping[str, Any]]) -> str:
    """`4 epochs causal, 16 epochs masked`."""
    parts = []
    for phase in phases:
        unit = "epochs" if phase["epochs"] is not None else "steps"
        shares = [f"{phase[name]:g} {name}" for name in ("causal", "masked") if phase[name]]
        parts.append(f"{phase[unit]:,} {unit}: {' and '.join(shares)}")
    return ", ".join(parts)


def _estimate_costs(recipe: Recipe, corpus_words: int) -> Facts:
    """Tokens, steps and FLOPs. The tokenizer does not exist yet, so that tokens are a guess."""
    limited = min(corpus_words, recipe.corpus.words or corpus_words)
    tokens = round(limited * TOKENS_PER_WORD)
    steps = plan_steps(recipe, tokens)
    trained = steps[-1].tokens_before + steps[-1].num_tokens
    return {
        "corpus": f"{limited:,} words, assumed to be {TOKENS_PER_WORD} tokens each",
        "tokens": f"{tokens:,} per epoch, {trained:,} in all ({trained / tokens:,.1f} epochs)",
        "steps": len(steps),
        "FLOPs": f"{training_flops(recipe, steps):.1e}{', of teachers too' if recipe.distil else ''}",
    }


def _describe_method(name: str) -> tuple[str, Facts]:
    one = get_method(name)
    needs = (
        " and ".join(sorted(one.attends))
        + " attention"
        + (", a mask token" if one.needs_mask else "")
    )
    return f"{name} (method)", {"score": one.description, "needs": needs}


def _describe_collection(spec: CollectionSpec) -> Facts:
    return {
        "version": spec.version,
        "members": "\n".join(map(_describe_member, spec.members)),
        "headline": "mean of the members by their weights",
        "homepage": spec.homepage,
        "published": "\n".join(f"{row.name} ({row.source})" for row in spec.published),
        "notes": "\n".join(spec.notes),
    }


def _describe_member(member: MemberSpec) -> str:
    """`GLUE: glue-2024 (finetune: boolq, cola), weight 0.5`, as short as its declaration allows."""
    suites = " and ".join(member.suite_names)
    name = f"{member.label}: {suites}" if member.label else suites
    made = {
        "score": "",
        "finetune": f" (finetune: {', '.join(member.tasks)})",
        "nothing": " (nothing computes it yet)",
    }
    made["acquisition"] = " (over checkpoints)"
    chosen = (
        f", {member.metric}"
        if member.metric
        else f", mean over {member.over} groups"
        if member.over
        else ""
    )
    return (
        name
        + made[member.made_by]
        + chosen
        + (f", weight {member.weight:g}" if member.weight != 1 else "")
    )


def _describe_suite(spec: SuiteSpec) -> Facts:
    return {
        "version": spec.version,
        "licence": spec.licence,
        "citation": spec.citation,
        "homepage": spec.homepage,
        "items": count_items(spec),
        "metric": spec.metric
        + (f", by log-probability {spec.reduction}" if spec.reduction != "sum" else ""),
        "headline": describe_aggregation(spec),
        "groups": " > ".join(spec.groups),
        "example": _format_example(spec.example[0]) if spec.example else "",
        "data": _describe_data(spec),
        "notes": "\n".join(spec.notes),
    }


def _describe_acquisition(spec: AcquisitionSpec) -> Facts:
    return {
        "version": spec.version,
        "citation": spec.citation,
        "homepage": spec.homepage,
        "words": f"{spec.words}, at every checkpoint",
        "headline": "Pearson's correlation of the ages at which children and the model know a word"
        + (f", 0 where p > {spec.significance:g}" if spec.significance else ""),
        "curve": f"a sigmoid through {'the mean over contexts' if spec.points == 'means' else 'every context'} at each "
        + f"checkpoint, its parameters {'bounded' if spec.bounded else 'unbounded'}",
        "chance": f"{spec.chance:.4g} nats"
        if spec.chance
        else "tokens of the word * ln(vocabulary)",
        "notes": "\n".join(spec.notes),
    }


def _describe_classification(spec: ClassificationSpec) -> Facts:
    default = spec.training
    return {
        "version": spec.version,
        "licence": spec.licence,
        "citation": spec.citation,
        "homepage": spec.homepage,
        "items": count_scored_texts(spec),
        "headline": "mean over the tasks, each in its own metric",
        "tasks": {name: _describe_task(spec, task) for name, task in spec.task.items()},
        "training": default.model_dump(exclude_none=True),
        "per task": {
            name: _describe_task_overrides(spec, name)
            for name in spec.task
            if spec.resolve_training(name) != default
        },
        "selection": f"the epoch that is best on {spec.held_out:.0%} of train, held out",
        "presets": {name: preset.source for name, preset in spec.preset.items()},
        "data": _describe_data(spec),
        "notes": "\n".join(spec.notes),
    }


def _describe_task(spec: ClassificationSpec, task: TaskSpec) -> str:
    """`accuracy of no, yes; 9,427 rows train, 1,635 are scored`."""
    train, valid = (
        spec.data.files[file].rows if file else None for file in (task.train, task.valid)
    )
    rows = (
        f"{train:,} rows train"
        if train
        else f"trains with {task.trains_with}"
        if task.trains_with
        else ""
    )
    counts = [*[rows] * bool(rows), *([f"{valid:,} are scored"] if valid else [])]
    return "; ".join(
        [f"{task.metric} of {', '.join(task.classes)}", *([", ".join(counts)] if counts else [])]
    )


def _describe_task_overrides(spec: ClassificationSpec, name: str) -> str:
    """What a task trains with that is not the suite's."""
    default = spec.training.model_dump()
    changes = {
        key: value
        for key, value in spec.resolve_training(name).model_dump().items()
        if value != default[key]
    }
    return ", ".join(f"{key} {value}" for key, value in changes.items())


def describe_aggregation(spec: SuiteSpec) -> str:
    """What the headline averages, as a sentence."""
    over = "all items" if not spec.macro else f"the items of each {spec.macro[-1]}"
    inner = f"{spec.metric} over {over}"
    for level in reversed(spec.macro):
        inner += (
            f", then the unweighted mean over {level}s"
            if level == spec.macro[-1]
            else f", then over {level}s"
        )
    return inner


def _format_example(example: ExampleSpec) -> str:
    """The options of the suite's first self-test, the right one marked."""
    return "\n".join(
        f"{'+' if index == example.gold else '-'} {text}"
        for index, text in enumerate(example.options)
    )


def _describe_data(spec: sources.SuiteWithData) -> str:
    if spec.data is None:
        return "generated from the declaration; nothing to fetch"
    rows = sources.list_files(spec)
    here = [row for row in rows if row.path]
    places = sorted({str(row.path.parent) for row in here if row.path})
    return f"{len(here)} of {len(rows)} files here" + "".join(f"\n{place}" for place in places)
