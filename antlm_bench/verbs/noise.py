"""`noise`: how far arithmetic alone moves a score."""

from __future__ import annotations

from typing import Annotated

from antlm_bench.options import one_format, split
from antlm_bench.verbs.panels import (
    AllowPickle,
    Csv,
    Json,
    Markdown,
    OriginalLayout,
    Revision,
    TrustRemoteCode,
    how,
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
    original_layout: OriginalLayout = None,
    json: Json = False,
    csv: Csv = False,
    markdown: Markdown = False,
) -> None:
    """Score the same weights under other batch sizes and dtypes: the floor below which no margin means anything."""
    form = one_format(json=json, csv=csv, markdown=markdown)
    from antlm_bench.commands.noise import CONDITIONS, noise
    from antlm_bench.rendering import catalog

    found = noise(
        model,
        split(suite),
        method=method,
        limit=limit,
        conditions=condition or tuple(CONDITIONS),
        revision=revision,
        device=device,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
        original_layout=original_layout,
    )
    catalog(found, form)
