"""`finetune`: checkpoints on tasks of classification."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from antlm_bench.cli.shared_options import (
    AdapterOption,
    Again,
    AllowMissing,
    AllowPickle,
    AllowUnused,
    Checkpoints,
    Csv,
    Device,
    Json,
    Markdown,
    OriginalLayout,
    Revision,
    RunFolder,
    TokenizerOption,
    TokensPerForward,
    TrustRemoteCode,
    how,
    limits,
    one_format,
    said,
    split,
    what,
)
from antlm_bench.errors import IncompleteError, UsageError


def finetune_verb(
    model: Checkpoints,
    suite: Annotated[
        list[str], what(metavar="NAME", help="glue-2025, glue-2024, glue, superglue, a .toml, or a train.csv.")
    ],
    task: Annotated[
        list[str] | None, what(metavar="NAME", help="Some of its tasks. Repeatable, or a,b.", show_default="all")
    ] = None,
    valid: Annotated[Path | None, what(metavar="FILE", help="The scored file that goes with a train.csv.")] = None,
    revision: Revision = None,
    limit_train: Annotated[
        list[str] | None, what(metavar="N", help="Train on N rows, evenly spaced; TASK=N of one task. Repeatable.")
    ] = None,
    limit_valid: Annotated[list[str] | None, what(metavar="N", help="Score N rows, likewise.")] = None,
    seeds: Annotated[int, how(metavar="N", min=1, help="Seeds 1 to N; 5 for a report.")] = 3,
    seed: Annotated[list[int] | None, how(metavar="N", help="This very seed instead. Repeatable.")] = None,
    attention: Annotated[
        list[str] | None,
        how(metavar="WAY", help="causal, full; all: both of a hybrid.", show_default="the checkpoint's first method's"),
    ] = None,
    preset: Annotated[
        str, how(metavar="NAME", help="Published settings: babylm-2025, babyllama, ...", show_default="none")
    ] = "",
    compat: Annotated[str, how(metavar="NAME", help="The same, as `score` calls it.", show_default="none")] = "",
    change: Annotated[
        list[str] | None, how("--set", metavar="KEY=VALUE", help="Change a hyper-parameter: lr=1e-4. Repeatable.")
    ] = None,
    pooling: Annotated[
        Literal["auto", "first", "last", "mean"], how(metavar="NAME", help="What the head reads of a text.")
    ] = "auto",
    lora: Annotated[int, how(metavar="RANK", min=0, help="Train low-rank adapters of this rank (needs peft).")] = 0,
    device: Device = None,
    dtype: Annotated[
        Literal["float32", "bfloat16"], how(metavar="NAME", help="Of matrix products: float32, bfloat16.")
    ] = "float32",
    batch_tokens: TokensPerForward = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_pickle: AllowPickle = False,
    peft: AdapterOption = None,
    tokenizer: TokenizerOption = None,
    allow_unused: AllowUnused = False,
    allow_missing: AllowMissing = False,
    original_layout: OriginalLayout = None,
    out: RunFolder = None,
    again: Again = False,
    json: Json = False,
    csv: Csv = False,
    markdown: Markdown = False,
) -> None:
    """Finetune checkpoints on classification tasks, several seeds each, into the same run folder as `score`."""
    form = one_format(json=json, csv=csv, markdown=markdown)
    if seed is not None and any(one < 0 for one in seed):
        raise UsageError("a seed is 0 or more", place="--seed")

    if preset and compat and preset != compat:
        message = f"two presets are named: --preset {preset} and --compat {compat}"
        raise UsageError(message, place="--preset", hint="they are one option with two names: give one")
    typed, preset = "--compat" if compat and not preset else "--preset", preset or compat

    from antlm_bench.commands.finetune import FinetuneOptions, finetune
    from antlm_bench.reporting import catalog
    from antlm_bench.results.seeds import rows

    rows_of = {"limit_train": limits(limit_train, "--limit-train"), "limit_valid": limits(limit_valid, "--limit-valid")}
    options = said(FinetuneOptions, locals(), valid=valid and str(valid), changes=change, **rows_of)
    chosen = seed or list(range(1, seeds + 1))
    names, ways = split(task), split(attention)
    try:
        runs = finetune(model, split(suite), tasks=names, seeds=chosen, attentions=ways, out=out, options=options)
    except UsageError as error:
        if error.place == "--preset":
            error.place = typed
        raise
    except IncompleteError as error:  # what did finish is shown before the error is
        catalog(rows(error.runs), form, empty="nothing finetuned yet")
        raise
    catalog(rows(runs), form, empty="nothing finetuned yet")
