"""`noise`: how far arithmetic alone moves a score."""

from __future__ import annotations

from typing import Annotated

from antlm_bench.cli.shared_options import (
    AdapterOption,
    AllowMissing,
    AllowPickle,
    AllowUnused,
    Csv,
    Json,
    Markdown,
    OriginalLayout,
    Revision,
    TokenizerOption,
    TrustRemoteCode,
    how,
    one_format,
    said,
    split,
    what,
)


def noise_verb(
    model: Annotated[str, what(metavar="CKPT", help="Folder or hub id.")],
    suite: Annotated[list[str], what(metavar="NAME", help="Suite or collection of pairs. Repeatable, or a,b.")],
    revision: Revision = None,
    limit: Annotated[int, what(metavar="N", min=1, help="Items of every paradigm.")] = 50,
    method: Annotated[str, how(metavar="NAME", help="One of its methods.", show_default="the checkpoint's first")] = "",
    condition: Annotated[
        list[str] | None,
        how(metavar="NAME", help="Some of: 'float32, small batches', 'float32, large batches', adaptive, bfloat16."),
    ] = None,
    device: Annotated[str, how(metavar="NAME", help="cpu, cuda, cuda:1, mps.")] = "auto",
    trust_remote_code: TrustRemoteCode = False,
    allow_pickle: AllowPickle = False,
    peft: AdapterOption = None,
    tokenizer: TokenizerOption = None,
    allow_unused: AllowUnused = False,
    allow_missing: AllowMissing = False,
    original_layout: OriginalLayout = None,
    json: Json = False,
    csv: Csv = False,
    markdown: Markdown = False,
) -> None:
    """Score the same weights under other batch sizes and dtypes: the floor below which no margin means anything."""
    form = one_format(json=json, csv=csv, markdown=markdown)
    from antlm_bench.checkpoints import OpenOptions
    from antlm_bench.commands.noise import CONDITIONS, noise
    from antlm_bench.reporting import catalog

    found = noise(
        model,
        split(suite),
        method=method,
        limit=limit,
        conditions=condition or tuple(CONDITIONS),
        options=said(OpenOptions, locals()),
    )
    catalog(found, form)
