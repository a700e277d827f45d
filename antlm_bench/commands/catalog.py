"""`list`, `show` and `doctor`: describe suites, recipes, methods, architectures, checkpoints."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from antlm_bench.architectures.records import ARCHITECTURES
from antlm_bench.declarations import (
    find_declaration,
    is_file,
    is_folder,
    list_declarations,
    parse_toml,
    read_declarations,
    suggest_name,
)
from antlm_bench.errors import BenchError, DeclarationError, UsageError, map_collecting_errors
from antlm_bench.metrics import METRICS
from antlm_bench.scoring.methods import METHODS, get_method
from antlm_bench.suites.pair_files import is_pairs_ref, is_table_file
from antlm_bench.suites.sources import describe_files
from antlm_bench.suites.task_types import (
    TASK_TYPES,
    CatalogRow,
    Facts,
    fill_command,
    match_task_type,
    read_catalog,
    read_declaration,
)
from antlm_bench.training.flops import compute_model_size, training_flops
from antlm_bench.training.recipe import (
    EXCLUSIVE_KEYS,
    PhaseSpec,
    Recipe,
    list_scales,
    read_recipe,
)
from antlm_bench.training.schedule import TOKENS_PER_WORD, describe_plan, plan_steps

if TYPE_CHECKING:
    from antlm_bench.checkpoints import OpenOptions

MIN_FOLDED_SUITES = 10
"""Smallest number of suites of one collection that `fold_collections` shows as one row."""
DEFAULT_CORPUS_WORDS = 10_000_000
"""Words of the corpus of BabyLM's strict-small track."""


def list_catalog(listing: str = "suites") -> list[CatalogRow]:
    """Return the rows of the table `antlm-bench list LISTING`, sorted by name.

    listing: a key of CATALOG_LISTINGS. Invalid declarations of users are left out, see
    `list_catalog_problems`. Raises DeclarationError for an invalid one of ours, and UsageError for
    another listing.
    """
    if listing not in CATALOG_LISTINGS:
        raise UsageError(
            f"{listing!r} cannot be listed", hint=f"one of {', '.join(CATALOG_LISTINGS)}"
        )
    return CATALOG_LISTINGS[listing]()


def filter_rows(
    rows: Sequence[CatalogRow], texts: Sequence[str] = (), language: str = ""
) -> list[CatalogRow]:
    """Return the rows of a language that contain all of some texts, in upper or lower case.

    language: a BCP 47 tag; "zh" also selects "zh-Hant". Raises UsageError for rows without
    languages, and for a language that no row has.
    """
    if language:
        languages = {str(row["language"]) for row in rows if row.get("language")}
        if not languages:
            raise UsageError(
                "these have no language", location="--language", hint="use it with `list suites`"
            )
        prefix = language.lower()
        rows = [row for row in rows if f"{row['language']}-".lower().startswith(f"{prefix}-")]
        if not rows:
            raise UsageError(
                f"no suite is of the language {language!r}",
                location="--language",
                hint=f"the languages are {', '.join(sorted(languages))}",
            )
    lowered = [text.lower() for text in texts]
    return [
        row
        for row in rows
        if all(text in " ".join(map(str, row.values())).lower() for text in lowered)
    ]


def fold_collections(rows: Sequence[CatalogRow]) -> list[CatalogRow]:
    """Show large collections as one row: multiblimp-abk, multiblimp-aln, ... as `multiblimp-*`.

    A collection is large if MIN_FOLDED_SUITES or more of its suites begin with its name.
    """
    collections = {str(row["collection"]): row for row in list_catalog("collections")}
    rows_by_collection: dict[str, list[CatalogRow]] = {}
    for row in rows:
        name = next((c for c in collections if str(row["suite"]).startswith(f"{c}-")), "")
        rows_by_collection.setdefault(name, []).append(row)
    folded: list[CatalogRow] = []
    for name, members in rows_by_collection.items():
        if not name or len(members) < MIN_FOLDED_SUITES:
            folded += members
            continue
        items = [row["items"] for row in members]
        folded.append(
            {
                **members[0],
                "suite": f"{name}-*",
                "language": "",
                "items": sum(n for n in items if isinstance(n, int)),
                "title": f"{len(members)} suites of the collection {name}; "
                f"antlm-bench list suites {name} lists them",
            }
        )
    return sorted(folded, key=lambda row: str(row["suite"]))


def group_by_language(rows: Sequence[CatalogRow]) -> dict[str, list[CatalogRow]]:
    """Return title -> suites: English, several languages or none stated, each other language."""
    groups: dict[str, list[CatalogRow]] = {}
    for row in sorted(rows, key=lambda row: (str(row["language"]), str(row["suite"]))):
        language = str(row["language"])
        title = {"en": "English", "": "several languages, or none"}.get(language, "other languages")
        groups.setdefault(title, []).append(row)
    order = ("English", "several languages, or none", "other languages")
    return {title: groups[title] for title in order if title in groups}


def list_catalog_problems(listing: str) -> list[str]:
    """Return the errors of the users' declarations that `list_catalog` leaves out."""
    errors: Mapping[str, BenchError] = {}
    if listing in ("suites", "collections"):
        _, errors = read_catalog()
    elif listing == "models":
        _, errors = _read_recipes()
    return [f"left out: {name}: {error}" for name, error in errors.items()]


def _list_tasks(listing: str) -> list[CatalogRow]:
    """Return the rows of `list suites` or `list collections`, one per declaration in tasks/."""
    rows = []
    for spec in read_catalog()[0].values():
        task_type = TASK_TYPES[spec.task_type]
        if task_type.listing == listing:
            rows.append(task_type.list_row(spec))
    return rows


def describe_objective(recipe: Recipe) -> str:
    """Return the lengths and objectives of a recipe's phases in one line.

    `4 CLM + 16 MLM + 4 CLM epochs` are three phases. `7,812 CLM:MNTP 1:15 steps` is one phase of
    7,812 steps; every batch has 15 rows of MNTP per row of CLM.
    """
    masked_objective = recipe.objective.masked.upper()

    def describe_phase(phase: PhaseSpec) -> str:
        length = f"{phase.epochs or phase.steps or 0:,}"
        causal_rows, masked_rows = phase.causal, phase.masked
        if causal_rows > 0 and masked_rows > 0:
            return f"{length} CLM:{masked_objective} {causal_rows:g}:{masked_rows:g}"
        return f"{length} {'CLM' if causal_rows > 0 else masked_objective}"

    unit = "epochs" if recipe.phase[0].epochs else "steps"
    distilled = ", distilled" if recipe.distil else ""
    return f"{' + '.join(map(describe_phase, recipe.phase))} {unit}{distilled}"


def count_parameters(recipe: Recipe) -> int:
    """Return the number of parameters of a recipe's model at the recipe's vocabulary size.

    A trained model can be smaller: on a small corpus, the tokenizer may not reach that vocabulary
    size.
    """
    return compute_model_size(recipe.model, recipe.tokenizer.vocabulary).parameters


def _read_recipes() -> tuple[dict[str, Recipe], dict[str, BenchError]]:
    """Read the recipes of the catalog, as `declarations.read_declarations` does."""
    return read_declarations("models", lambda name, _: read_recipe(name))


def _list_recipes() -> list[CatalogRow]:
    """Return the rows of `list models`, which lists recipes: they are declared in models/."""
    rows: list[CatalogRow] = []
    for name, recipe in _read_recipes()[0].items():
        row: CatalogRow = {
            "model": name,
            "parameters": count_parameters(recipe),
            "objective": describe_objective(recipe),
            "scales": ", ".join(list_scales(name)),
            "title": recipe.title,
        }
        rows.append(row)
    return rows


def _list_methods() -> list[CatalogRow]:
    return [
        {
            "method": method.name,
            "what it is": method.description,
            "attention": " and ".join(sorted(method.attentions)),
        }
        for method in METHODS
    ]


def _list_architectures() -> list[CatalogRow]:
    return [
        {
            "architecture": architecture.name,
            "model type": architecture.model_type,
            "what it is": architecture.title,
        }
        for architecture in ARCHITECTURES
    ]


def _list_metrics() -> list[CatalogRow]:
    return [
        {
            "metric": metric.name,
            "what it is": metric.label,
            "items": metric.item_kind.value,
            "better": "lower" if metric.lower_is_better else "higher",
            "package": METRICS.package_of(metric.name),
        }
        for metric in METRICS
    ]


def _list_task_types() -> list[CatalogRow]:
    return [
        {
            "kind of suite": task_type.name,
            "what it is": task_type.noun,
            "declared in a TOML": task_type.declaration is not None,
            "package": TASK_TYPES.package_of(task_type.name),
        }
        for task_type in TASK_TYPES
    ]


CATALOG_LISTINGS: dict[str, Callable[[], list[CatalogRow]]] = {
    "suites": partial(_list_tasks, "suites"),
    "collections": partial(_list_tasks, "collections"),
    "models": _list_recipes,
    "methods": _list_methods,
    "architectures": _list_architectures,
    "metrics": _list_metrics,
    "task-types": _list_task_types,
}
"""Argument of `list` -> its rows. "models" lists training recipes: they are declared in
the folder models/."""


def describe_entry(
    kind_and_name: Sequence[str],
    scale: str = "",
    overrides: Sequence[str] = (),
    corpus_words: int | None = None,
) -> tuple[str, Facts]:
    """Return (name, facts in reading order) of a suite, collection, recipe, method or architecture.

    kind_and_name: (NAME,) or (KIND, NAME), with KIND a key of CATALOG_LISTINGS. scale, overrides,
    corpus_words: only for a recipe, see describe_recipe. Raises DeclarationError, DataError,
    UsageError.
    """
    if len(kind_and_name) > 2:
        raise UsageError(
            f"`show` takes NAME or KIND NAME, not {len(kind_and_name)} arguments",
            hint="give one at a time: antlm-bench show [KIND] NAME",
        )
    name = kind_and_name[-1]
    kind = kind_and_name[0] if len(kind_and_name) == 2 else detect_entry_kind(name)
    if kind not in CATALOG_LISTINGS:
        raise UsageError(
            f"{kind!r} cannot be shown",
            hint=suggest_name(kind, CATALOG_LISTINGS) or f"one of {', '.join(CATALOG_LISTINGS)}",
        )
    if kind == "models":
        return describe_recipe(name, scale, overrides, corpus_words or DEFAULT_CORPUS_WORDS)
    if scale or overrides or corpus_words:
        raise UsageError("--scale, --set and --words are only for recipes", location=f"show {name}")
    if kind == "methods":
        return _describe_method(name)
    if kind == "architectures":
        return _describe_architecture(name)
    if is_pairs_ref(name):
        noun = "a folder of files of pairs" if is_folder(name) else "a file of pairs"
        facts = {
            "kind": f"{noun}: antlm-bench score --model CKPT --suite {shlex.quote(name)}; "
            "--columns names its columns",
            "how it is read": f"antlm-bench suggest {shlex.quote(name)}",
        }
        if is_table_file(name):  # the same kinds of file hold pairs, or texts with labels
            facts["or"] = (
                "a file of texts and labels: "
                f"antlm-bench finetune --model CKPT --suite {shlex.quote(name)} --valid FILE"
            )
        return name, facts
    if record := match_task_type(name):
        return name, {"kind": record.noun, "run": fill_command(record.example_command, [name])}
    spec, folder = read_declaration(name)
    facts = {**TASK_TYPES[spec.task_type].describe(spec)}
    if "data" in facts and hasattr(spec, "data"):  # a user's files lie beside the TOML
        facts["data"] = describe_files(spec, folder)
    return spec.name, {"title": spec.title} | {key: value for key, value in facts.items() if value}


def detect_entry_kind(name: str) -> str:
    """Return the kind of a name or a .toml: "methods", "models", "suites" or "architectures".

    Collections count as "suites". A .toml counts as "models" if it has a key that only recipes
    have, otherwise as "suites". Raises DeclarationError for an unknown name.
    """
    if name in METHODS:
        return "methods"
    recipes, suites = list_declarations("models"), list_declarations("tasks")
    if name in recipes:
        return "models"
    if name in suites or match_task_type(name):
        return "suites"
    if name in ARCHITECTURES:
        return "architectures"
    if not name.endswith(".toml") and not (is_file(name) or is_folder(name)):
        names = [*suites, *recipes, *METHODS.names(), *ARCHITECTURES.names()]
        raise DeclarationError(
            f"no suite, recipe, method or architecture is called {name!r}",
            hint=suggest_name(name, names)
            or f"list the names: antlm-bench list {'|'.join(CATALOG_LISTINGS)}",
        )
    path = find_declaration("tasks", name)  # a path; the kind matters for errors only
    keys = parse_toml(path).keys()
    return "models" if {"model", "extends"} & keys else "suites"


def describe_recipe(
    name: str,
    scale: str = "",
    overrides: Sequence[str] = (),
    corpus_words: int = DEFAULT_CORPUS_WORDS,
) -> tuple[str, Facts]:
    """Return (name, facts) of a recipe: its costs on a corpus, then all its settings.

    corpus_words: number of words of the corpus. If the recipe limits its corpus to fewer words
    (`corpus.words`), that number is used. Raises DeclarationError, UsageError, DataError.
    """
    recipe = read_recipe(name, scale, overrides)
    shown_elsewhere = {"name", "title", "scale", "sources", "notes", "difference", "phase"}
    settings = recipe.model_dump(exclude=shown_elsewhere, exclude_none=True)
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
    """Return the differences of a recipe from its paper; [] for a name that is not a recipe.

    Columns: "number" (the setting that differs: a recipe key or a description), "paper" (its value
    in the paper), "ours" (its value in this recipe), "why". The recipe's [[difference]] entries
    come first, then the settings that `scale` and `overrides` change. Raises the same errors as
    describe_recipe.
    """
    name = kind_and_name[-1]
    kind = kind_and_name[0] if len(kind_and_name) == 2 else detect_entry_kind(name)
    if kind != "models":
        return []
    recipe = read_recipe(name, scale, overrides)
    rows_by_setting = {}
    for difference in recipe.difference:
        why = difference.why
        alternative_settings = difference.option.split()
        if alternative_settings:
            why += "; alternative: " + " ".join(f"--set {each}" for each in alternative_settings)
        setting = difference.number
        rows_by_setting[setting] = {
            "number": setting,
            "paper": difference.paper,
            "ours": difference.ours,
            "why": why,
        }
    default_settings = _flatten_settings(read_recipe(name).model_dump(mode="json"))
    used_settings = _flatten_settings(recipe.model_dump(mode="json"))
    overridden_keys = {override.partition("=")[0].strip() for override in overrides}
    overridden_keys |= {  # setting one of two exclusive keys removes the other
        f"{table}.{other_key}"
        for table, key, other_key in EXCLUSIVE_KEYS
        if f"{table}.{key}" in overridden_keys
    }
    for key in dict.fromkeys([*default_settings, *used_settings]):
        if default_settings.get(key) == used_settings.get(key):
            continue
        is_overridden = any(f"{key}.".startswith(f"{prefix}.") for prefix in overridden_keys)
        difference_row = rows_by_setting.get(key)
        if difference_row:
            paper_value = difference_row["paper"]
        else:  # without a [[difference]] entry, the recipe's default is the paper's value
            paper_value = default_settings.get(key, "none")
        rows_by_setting[key] = {
            "number": key,
            "paper": paper_value,
            "ours": used_settings.get(key, "none"),
            "why": "changed by --set" if is_overridden else f"changed by scale {scale}",
        }
    return list(rows_by_setting.values())


def _flatten_settings(tables: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return the training settings of a recipe by dotted key: `optimizer.lr`."""
    descriptive_keys = ("name", "title", "scale", "sources", "notes", "difference")
    flat: dict[str, str] = {}
    for key, value in tables.items():
        if isinstance(value, Mapping):
            flat |= _flatten_settings(value, f"{prefix}{key}.")
        elif prefix or key not in descriptive_keys:
            flat[prefix + key] = _format_phases(value) if key == "phase" else str(value)
    return flat


def _format_phases(phases: Sequence[Mapping[str, Any]]) -> str:
    """Return a line such as `4 epochs: 1 causal, 16 epochs: 1 causal and 15 masked`.

    `1 causal and 15 masked`: a batch has 15 masked rows per causal row.
    """
    parts = []
    for phase in phases:
        unit = "epochs" if phase["epochs"] is not None else "steps"
        rows = [f"{phase[name]:g} {name}" for name in ("causal", "masked") if phase[name] > 0]
        parts.append(f"{phase[unit]:,} {unit}: {' and '.join(rows)}")
    return ", ".join(parts)


def _estimate_costs(recipe: Recipe, corpus_words: int) -> Facts:
    """Return tokens, steps and FLOPs. The tokens are estimated: there is no tokenizer yet."""
    words = min(corpus_words, recipe.corpus.words or corpus_words)
    held_out = recipe.corpus.held_out
    tokens = round(words * (1 - held_out) * TOKENS_PER_WORD)
    return {
        "corpus": f"{words:,} words, assumed to be {TOKENS_PER_WORD} tokens each"
        + (f"; {held_out:.3g} of them are held out" if held_out else ""),
        **describe_plan(recipe, tokens),
        "FLOPs": f"{training_flops(recipe, plan_steps(recipe, tokens)):.1e}"
        + (", including the teachers" if recipe.distil else ""),
    }


def _describe_method(name: str) -> tuple[str, Facts]:
    method = get_method(name)
    needs = f"{' and '.join(sorted(method.attentions))} attention"
    needs += ", a mask token" if method.needs_mask else ""
    return f"{name} (method)", {"score": method.description, "needs": needs}


def _describe_architecture(name: str) -> tuple[str, Facts]:
    architecture = ARCHITECTURES[name]
    recipes = [
        recipe_name
        for recipe_name in list_declarations("models")
        if read_recipe(recipe_name).model.architecture == name
    ]
    facts = {
        "title": architecture.title,
        "model type": architecture.model_type,
        "classes": "\n".join(
            f"{auto_class}: {path}" for auto_class, path in architecture.classes.items()
        ),
        "further keys": ", ".join(f"model.{key}" for key in sorted(architecture.optional_keys)),
        "recipes": ", ".join(recipes),
    }
    return f"{name} (architecture)", {key: value for key, value in facts.items() if value}


def inspect_checkpoints(
    refs: Sequence[str], options: OpenOptions | None = None
) -> Iterator[Mapping[str, object]]:
    """Open checkpoints without scoring, and yield the facts of each.

    refs: checkpoints as `--model` takes them (`checkpoints.expand_refs`). A checkpoint that cannot
    be opened raises its error at the end, when all others were described.
    """
    from antlm_bench.checkpoints import expand_refs, open_checkpoint

    return map_collecting_errors(
        expand_refs(refs, options.revision if options else None),
        lambda ref: open_checkpoint(ref, options).describe_for_doctor(),
    )
