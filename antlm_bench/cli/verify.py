"""`verify`: our scores beside the peers'."""

from __future__ import annotations

from typing import Annotated

from antlm_bench.cli.shared_options import (
    AdapterOption,
    AllowMissing,
    AllowPickle,
    AllowUnused,
    Bos,
    Columns,
    Csv,
    Json,
    Markdown,
    MaxLength,
    Revision,
    TokenizerOption,
    TrustRemoteCode,
    how,
    one_format,
    renamed_columns,
    said,
    split,
    table,
    what,
)


def verify_verb(
    model: Annotated[str, what(metavar="CKPT", help="Folder or hub id.")],
    suite: Annotated[
        list[str],
        what(metavar="NAME", help="Suite, collection, .csv .tsv .jsonl of pairs, or .toml. Repeatable, or a,b."),
    ],
    limit: Annotated[int, what(metavar="N", min=1, help="So many items of every suite, evenly spaced over it.")] = 100,
    revision: Revision = None,
    columns: Columns = None,
    method: Annotated[
        list[str] | None,
        how(metavar="NAME", help="causal, mlm, mlm-l2r. Repeatable, or a,b.", show_default="the checkpoint's own"),
    ] = None,
    bos: Bos = None,
    max_length: MaxLength = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_pickle: AllowPickle = False,
    peft: AdapterOption = None,
    tokenizer: TokenizerOption = None,
    allow_unused: AllowUnused = False,
    allow_missing: AllowMissing = False,
    tolerance: Annotated[float, table(metavar="NATS", help="The largest difference of a score that passes.")] = 1e-3,
    json: Json = False,
    csv: Csv = False,
    markdown: Markdown = False,
) -> None:
    """Score a sample with our engine, minicons and lm-eval, all on the CPU in float32; show every difference."""
    form = one_format(json=json, csv=csv, markdown=markdown)

    from antlm_bench.checkpoints import OpenOptions
    from antlm_bench.commands.verify import verify
    from antlm_bench.reporting.verification import show_verification

    options = said(OpenOptions, locals(), device="cpu")
    found = verify(
        model,
        split(suite),
        limit=limit,
        methods=split(method),
        columns=renamed_columns(columns),
        tolerance=tolerance,
        options=options,
    )
    show_verification(found, form)
    found.check()
