"""`score`: checkpoints on suites."""

from __future__ import annotations

from typing import Annotated, Literal

from antlm_bench.cli.shared_options import (
    AdapterOption,
    Again,
    AllowMissing,
    AllowPickle,
    AllowUnused,
    Bos,
    Checkpoints,
    Columns,
    Csv,
    Device,
    Dtype,
    Json,
    Markdown,
    MaxLength,
    OriginalLayout,
    Revision,
    RunFolder,
    TokenizerOption,
    TokensPerForward,
    TrustRemoteCode,
    how,
    one_format,
    renamed_columns,
    said,
    split,
    table,
    what,
)
from antlm_bench.errors import IncompleteError

PEERS = (
    "lm-eval's and BabyLM's spellings work too: --model hf --model_args pretrained=X,dtype=float32, --tasks, "
    "--batch_size, --output_path, --backend, --model_path_or_name, --revision_name; underscores or hyphens."
)


def score_verb(
    model: Checkpoints,
    suite: Annotated[
        list[str],
        what(metavar="NAME", help="Suite, collection, .csv .tsv .jsonl of pairs, .toml, .json, lm-eval:TASK. Or a,b."),
    ],
    revision: Revision = None,
    limit: Annotated[int | None, what(metavar="N", min=1, help="Only the first N items of every paradigm.")] = None,
    columns: Columns = None,
    allow_incomplete: Annotated[bool, what("--allow-incomplete", help="Score a suite that lacks items.")] = False,
    method: Annotated[
        list[str] | None,
        how(
            metavar="NAME",
            help="causal, mlm, mlm-l2r, mntp, fused; all that fit. Repeatable, or a,b.",
            show_default="the checkpoint's own",
        ),
    ] = None,
    bos: Bos = None,
    ties: Annotated[
        Literal["half", "strict", "first", "random"] | None,
        how(metavar="RULE", help="What a tie counts: half (1/k), strict (0), first, random.", show_default="half"),
    ] = None,
    compat: Annotated[
        Literal["lm-eval", "minicons", "babylm-2024", "babylm-2025", "babylm-2026"] | None,
        how(metavar="PEER", help="A peer's conventions: lm-eval, minicons, babylm-2024, babylm-2025, babylm-2026."),
    ] = None,
    max_length: MaxLength = None,
    device: Device = None,
    dtype: Dtype = None,
    precision: Annotated[
        Literal["exact", "adaptive"] | None,
        how(
            metavar="NAME",
            help="exact, or adaptive: bfloat16, and float32 where the margin is small.",
            show_default="exact",
        ),
    ] = None,
    engine: Annotated[
        Literal["native", "minicons"] | None,
        how(metavar="NAME", help="native, or minicons: for models that ours cannot run.", show_default="native"),
    ] = None,
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
    by: Annotated[
        Literal["suite", "field", "phenomenon", "paradigm"],
        table(metavar="LEVEL", help="Depth: suite, field, phenomenon, paradigm."),
    ] = "phenomenon",
    json: Json = False,
    csv: Csv = False,
    markdown: Markdown = False,
) -> None:
    """Score checkpoints on suites, print the table, keep every prediction in a run folder."""
    form = one_format(json=json, csv=csv, markdown=markdown)

    from antlm_bench.commands.score import ScoreOptions, score
    from antlm_bench.reporting import show_runs
    from antlm_bench.reporting.terminal import console, paragraph
    from antlm_bench.results.collections import left_out

    options = said(ScoreOptions, locals(), columns=renamed_columns(columns))
    try:
        runs = score(model, split(suite), methods=split(method), out=out, options=options)
    except IncompleteError as error:  # what did finish is shown before the error is
        show_runs(error.runs, form, by)
        raise
    show_runs(runs, form, by)
    for line in left_out(model, split(suite)):
        paragraph(console(stderr=True), line, "yellow")
