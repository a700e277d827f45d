"""The command `effects`: means, contrasts and interactions of surprisal, and their figures."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from antlm_bench.cli.shared_options import (
    OptionValues,
    Tables,
    build_options,
    model_option,
    output_option,
    parse_column_map,
    prints_tables,
    refuse_options,
    settings_option,
    split_names,
    with_open_options,
)
from antlm_bench.cli.surprisal import (
    ConditionsOption,
    PositionOption,
    SpilloverOption,
    WordsOption,
    build_layout,
)

if TYPE_CHECKING:
    from antlm_bench.keywords import DesignKeywords
    from antlm_bench.results.effects import DesignResult

design_option = partial(typer.Option, rich_help_panel="Design")

EFFECTS_HELP = (
    "A region's value is the sum over its words. Effects are paired by items: a t test of the "
    "items' scores. Without --factors, all pairs of conditions are compared; with them, main "
    "effects and interactions."
)


@prints_tables()
@with_open_options()
def effects_command(
    table: Annotated[
        str,
        typer.Argument(
            metavar="TABLE",
            help="Table of surprisal: .csv .tsv .jsonl .parquet. With --model: stimuli, as "
            "`surprisal --in` reads them.",
        ),
    ],
    model: Annotated[
        list[str] | None,
        model_option(metavar="CKPT", help="Compute the surprisals of TABLE first. Repeatable."),
    ] = None,
    columns: Annotated[
        list[str] | None,
        model_option(metavar="item=A,condition=B", help="Column names of your file."),
    ] = None,
    words: WordsOption = None,
    conditions: ConditionsOption = None,
    position: PositionOption = None,
    spillover: SpilloverOption = None,
    factors: Annotated[
        list[str] | None,
        design_option(
            metavar="A,B",
            help="Factors: columns, or names for the parts of `condition`.",
            show_default="condition",
        ),
    ] = None,
    separator: Annotated[
        str, design_option(metavar="TEXT", help="Characters between the parts of `condition`.")
    ] = "_",
    region: Annotated[
        list[str] | None,
        design_option(
            metavar="NAME",
            help="Only these regions. Repeatable, or A,B.",
            show_default="all that have a name",
        ),
    ] = None,
    per: Annotated[
        list[str] | None,
        design_option(
            metavar="COLUMN", help="Compute effects for each value of a column. Repeatable."
        ),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        design_option(metavar="LEVEL", help="Level that is subtracted from others. Repeatable."),
    ] = None,
    contrast: Annotated[
        list[str] | None,
        design_option(
            metavar="'A - B'",
            help="Only this contrast of conditions, e.g. 'a - 0.5*b - 0.5*c'. Repeatable.",
        ),
    ] = None,
    value: Annotated[
        str,
        design_option(
            metavar="COLUMN", help="Column of the values.", show_default="the first surprisal_..."
        ),
    ] = "",
    method: Annotated[
        str | None,
        settings_option(
            metavar="NAME",
            help="With --model: causal, mlm, mlm-l2r, mntp, seq2seq, infill.",
            show_default="the checkpoint's first",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        output_option(
            "--out",
            metavar="FILE",
            help="A row per item, condition and region, for R: .csv .tsv .parquet",
        ),
    ] = None,
    figure: Annotated[
        Path | None,
        output_option(
            "--figure", metavar="FILE", help="Draw a figure: .png .svg, or .html with all of them."
        ),
    ] = None,
    plot: Annotated[
        Literal["sentence", "regions", "critical", "effects"] | None,
        output_option(
            "--plot",
            metavar="KIND",
            help="sentence (word by word), regions, critical (bars of the first region), effects.",
            show_default="regions",
        ),
    ] = None,
    item: Annotated[
        str | None,
        output_option("--item", metavar="ITEM", help="For --plot sentence: one item."),
    ] = None,
    *,
    open_options: OptionValues,
) -> Tables:
    """Compare the surprisal of conditions, paired by items: means, contrasts, interactions.

    The input is a table that `surprisal` wrote, or stimuli and --model.
    """
    from antlm_bench.checkpoints import OpenOptions
    from antlm_bench.commands.effects import effects, effects_of_models
    from antlm_bench.reporting.effects_table import build_effects_table

    if figure:
        from antlm_bench.reporting.effects_figures import check_figure_suffix

        check_figure_suffix(figure)
    if not model:
        _refuse_model_options(
            {"method": method, "words": words, **open_options}, conditions or position
        )
    if not figure:
        refuse_options(
            {"--plot": plot, "--item": item},
            "there is no figure",
            "name its file: --figure FILE.png",
        )
    settings: DesignKeywords = {
        "factors": split_names(factors),
        "separator": separator,
        "regions": split_names(region),
        "per": split_names(per),
        "baseline": split_names(baseline),
        "contrasts": contrast or [],
        "value": value,
    }
    if model:
        result = effects_of_models(
            split_names(model),
            table,
            out,
            columns=parse_column_map(columns),
            layout=build_layout(conditions, position, spillover),
            method=method,
            words=words,
            options=build_options(OpenOptions, open_options),
            settings=settings,
        )
    else:
        result = effects(table, out, columns=parse_column_map(columns), **settings)
    if figure:
        _write_figure(result, figure, plot, item)
    yield build_effects_table(result, title=table)


def _refuse_model_options(options: OptionValues, layout: object) -> None:
    """Raise UsageError for an option that has no effect without a model."""
    refuse_options(
        {"--conditions, --position": layout},
        "they describe stimuli, but the table holds surprisals",
        "add --model CKPT, or give them to `surprisal`",
    )
    refuse_options(
        {f"--{name.replace('_', '-')}": value for name, value in options.items()},
        "no model is opened: the table holds surprisals",
        "add --model CKPT, or leave it out",
    )


def _write_figure(result: DesignResult, figure: Path, kind: str | None, item: str | None) -> None:
    """Write one figure, or for .html all that can be drawn."""
    from antlm_bench.reporting.effects_figures import PLOTS, plot, write_plots

    if figure.suffix.lower() != ".html":
        write_plots([plot(result, kind, item=item)], figure)
        return
    kinds = [kind] if kind else [name for name in PLOTS if _can_draw(result, name)]
    plots = [plot(result, name, item=item if name == "sentence" else None) for name in kinds]
    write_plots(plots, figure, result)


def _can_draw(result: DesignResult, kind: str) -> bool:
    """Return whether the table has what a kind of figure shows: words, or several regions."""
    if kind == "sentence":
        return all(word.number is not None for word in result.experiment.words)
    return kind != "regions" or len(result.regions) > 1
