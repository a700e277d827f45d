"""The command line: argv to a verb, a verb's result to the terminal, an error to a message and an exit code.

Nothing heavy is imported here: each verb imports what it needs, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from antlm_bench import __version__
from antlm_bench.errors import BenchError, IncompleteError
from antlm_bench.exits import exit_code
from antlm_bench.machine import spin_briefly
from antlm_bench.options import one_format, renamed_columns, split, token_budget
from antlm_bench.spellings import ours

EXIT_CODES = (
    "Exit codes: 0 finished · 2 usage · 3 model or data · 5 incomplete · 6 not comparable · 70 a bug of ours · "
    "75 stopped by a signal, the same command resumes · 130 Ctrl-C"
)
PEERS = (
    "lm-eval's and BabyLM's spellings work too: --model hf --model_args pretrained=X,dtype=float32, --tasks, "
    "--batch_size, --output_path, --backend, --model_path_or_name, --revision_name; underscores or hyphens."
)

app = typer.Typer(
    name="antlm-bench",
    help="Honest, fast, comparable evaluation of small language models on minimal pairs.",
    epilog=EXIT_CODES,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
data = typer.Typer(help="Where the benchmark files are, where they come from, and whether they are intact.")
app.add_typer(data, name="data")

what = partial(typer.Option, rich_help_panel="What is scored")
how = partial(typer.Option, rich_help_panel="How it is scored")
run_folder = partial(typer.Option, rich_help_panel="The run")
table = partial(typer.Option, rich_help_panel="What is shown")
recipe_option = partial(typer.Option, rich_help_panel="Of a recipe")

Json = Annotated[bool, table("--json", help="JSON instead of a table.")]
Csv = Annotated[bool, table("--csv", help="CSV instead of a table.")]
Markdown = Annotated[bool, table("--markdown", help="Markdown instead of a table.")]
Suites = Annotated[list[str] | None, typer.Argument(metavar="[SUITE]...", help="All of them when none is named.")]


def print_version(wanted: bool) -> None:
    if wanted:
        print(f"antlm-bench {__version__}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")]


@app.callback()
def before_any_verb(version: Version = False) -> None:
    pass


@app.command("score", epilog=PEERS)
def score_verb(
    model: Annotated[list[str], what(metavar="CKPT", help="Folder, hub id, glob, folder of checkpoints. Repeatable.")],
    suite: Annotated[
        list[str],
        what(metavar="NAME", help="Suite, collection, .csv .tsv .jsonl of pairs, or .toml. Repeatable, or a,b."),
    ],
    revision: Annotated[str | None, what(metavar="REV", help="Revision of a hub model.")] = None,
    limit: Annotated[int | None, what(metavar="N", min=1, help="Only the first N items of every paradigm.")] = None,
    columns: Annotated[list[str] | None, what(metavar="good=A,bad=B", help="How a file names its columns.")] = None,
    allow_incomplete: Annotated[bool, what("--allow-incomplete", help="Score a suite that lacks items.")] = False,
    method: Annotated[
        list[str] | None,
        how(
            metavar="NAME",
            help="causal, mlm, mlm-l2r, mntp, fused; all that fit. Repeatable, or a,b.",
            show_default="the checkpoint's own",
        ),
    ] = None,
    bos: Annotated[
        Literal["auto", "always", "never", "tokenizer"] | None,
        how(metavar="RULE", help="A BOS before each text: auto, always, never, tokenizer.", show_default="auto"),
    ] = None,
    ties: Annotated[
        Literal["half", "strict", "first", "random"] | None,
        how(metavar="RULE", help="What a tie counts: half (1/k), strict (0), first, random.", show_default="half"),
    ] = None,
    compat: Annotated[
        Literal["lm-eval", "minicons", "babylm-2024", "babylm-2025", "babylm-2026"] | None,
        how(metavar="PEER", help="A peer's conventions: lm-eval, minicons, babylm-2024, babylm-2025, babylm-2026."),
    ] = None,
    max_length: Annotated[
        int | None, how(metavar="N", min=1, help="Tokens per text; longer ones are counted, never cut.")
    ] = None,
    device: Annotated[
        str | None, how(metavar="NAME", help="cpu, cuda, cuda:1, mps.", show_default="the best there is")
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        how(metavar="NAME", help="float32, bfloat16, float16.", show_default="float32"),
    ] = None,
    precision: Annotated[
        Literal["exact", "adaptive"] | None,
        how(
            metavar="NAME",
            help="exact, or adaptive: bfloat16, and float32 where the margin is small.",
            show_default="exact",
        ),
    ] = None,
    batch_tokens: Annotated[
        str | None, how(metavar="N", help="Tokens per batch; no score depends on it.", show_default="auto")
    ] = None,
    trust_remote_code: Annotated[bool, how("--trust-remote-code", help="Run the checkpoint's own Python.")] = False,
    allow_pickle: Annotated[bool, how("--allow-pickle", help="Open weights that can run code.")] = False,
    out: Annotated[
        Path | None, run_folder(metavar="DIR", help="Run folder.", show_default="a readable name in reports/")
    ] = None,
    again: Annotated[bool, run_folder("--again", help="Compute even what the run already holds.")] = False,
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
    given: dict[str, Any] = {"revision": revision, "limit": limit, "columns": renamed_columns(columns), "bos": bos}
    given |= {"ties": ties, "compat": compat, "max_length": max_length, "device": device, "dtype": dtype}
    given |= {"precision": precision, "batch_tokens": token_budget(batch_tokens), "again": again}
    given |= {"allow_incomplete": allow_incomplete, "allow_pickle": allow_pickle}
    given |= {"trust_remote_code": trust_remote_code}

    from antlm_bench.commands.score import ScoreOptions, score
    from antlm_bench.rendering import show_runs

    options = ScoreOptions(**{name: value for name, value in given.items() if value is not None})
    try:
        runs = score(model, split(suite), methods=split(method), out=out, options=options)
    except IncompleteError as error:  # what did finish is shown before the error is
        show_runs(error.runs, form, by)
        raise
    show_runs(runs, form, by)


@app.command("train")
def train_verb(
    recipe: Annotated[str, typer.Argument(help="A recipe (`antlm-bench list models`), or a .toml of yours.")],
    corpus: Annotated[
        str, what(metavar="TEXT", help="Folder of .txt .train .jsonl (or .gz), `nano`, or a hub dataset.")
    ],
    out: Annotated[Path, run_folder(metavar="DIR", help="Receives checkpoints, log and state.")],
    scale: Annotated[str, what(metavar="NAME", help="A smaller version that the recipe declares: nano, small.")] = "",
    change: Annotated[
        list[str] | None, what("--set", metavar="KEY=VALUE", help="Change a number of the recipe. Repeatable.")
    ] = None,
    teacher: Annotated[
        list[str] | None,
        what(metavar="CKPT", help="Teachers of a distilled recipe, in order.", show_default="trained first"),
    ] = None,
    resume: Annotated[
        bool, run_folder("--resume", help="Refuse to begin anew; the same command resumes anyway.")
    ] = False,
    save_every: Annotated[float, run_folder(metavar="MIN", min=0, help="Minutes between two saved states.")] = 10.0,
    device: Annotated[Literal["auto", "cpu"], how(metavar="NAME", help="auto: what Accelerate finds; cpu.")] = "auto",
    precision: Annotated[
        Literal["float32", "bfloat16"], how(metavar="NAME", help="Of matrix products: float32, bfloat16.")
    ] = "float32",
    batch_tokens: Annotated[
        str | None, how(metavar="N", help="Tokens per forward; changes speed and memory only.", show_default="auto")
    ] = None,
    compiled: Annotated[bool, how("--compile", help="torch.compile the model; pays on long runs.")] = False,
    track: Annotated[
        list[str] | None, run_folder(metavar="NAME", help="tensorboard, wandb, trackio, ... Repeatable.")
    ] = None,
) -> None:
    """Train a recipe on a text: checkpoints by words seen, a log, and a state from which a killed run continues."""
    from antlm_bench.commands.train import TrainOptions, train
    from antlm_bench.rendering import facts

    options = TrainOptions(
        scale=scale,
        changes=change or (),
        teachers=teacher or (),
        resume=resume,
        device=device,
        precision=precision,
        micro_tokens=token_budget(batch_tokens),
        compiled=compiled,
        save_every=save_every,
        trackers=track or (),
    )
    made = train(recipe, corpus, out, options)
    if os.environ.get("RANK", "0") == "0":  # of several processes (torchrun, accelerate launch) one says it
        suite = corpus if corpus == "nano" else "blimp"
        score_it = f"antlm-bench score --model {made} --suite {suite} --method all"
        facts(recipe, {"checkpoint": str(made), "score it": score_it})


@app.command("list")
def list_verb(
    kind: Annotated[
        Literal["suites", "collections", "models", "methods"],
        typer.Argument(metavar="KIND", help="suites, collections, models (training recipes) or methods."),
    ] = "suites",
    json: Json = False,
    csv: Csv = False,
    markdown: Markdown = False,
) -> None:
    """List what can be scored, and how."""
    form = one_format(json=json, csv=csv, markdown=markdown)
    from antlm_bench.commands.list import listing
    from antlm_bench.rendering import catalog

    catalog(listing(kind), form, empty=f"no {kind} yet")


@app.command("show")
def show_verb(
    name: Annotated[
        list[str], typer.Argument(metavar="[KIND] NAME", help="A suite, collection, recipe, method, or a .toml.")
    ],
    scale: Annotated[str, recipe_option(metavar="NAME", help="A smaller version that it declares: nano, small.")] = "",
    change: Annotated[
        list[str] | None, recipe_option("--set", metavar="KEY=VALUE", help="Change a number of it. Repeatable.")
    ] = None,
    words: Annotated[
        int | None, recipe_option(metavar="N", min=1, help="Of the corpus.", show_default="10,000,000")
    ] = None,
) -> None:
    """Show one declaration: what it says, what it counts or costs, whom to cite, where its data lies."""
    from antlm_bench.commands.show import details
    from antlm_bench.rendering import facts

    facts(*details(name, scale=scale, changes=change or (), words=words))


@app.command("doctor")
def doctor_verb(
    model: Annotated[list[str], what(metavar="CKPT", help="Folder, hub id, glob, folder of checkpoints. Repeatable.")],
    revision: Annotated[str | None, what(metavar="REV", help="Revision of a hub model.")] = None,
    trust_remote_code: Annotated[bool, how("--trust-remote-code", help="Run the checkpoint's own Python.")] = False,
    allow_pickle: Annotated[bool, how("--allow-pickle", help="Open weights that can run code.")] = False,
) -> None:
    """Open checkpoints and print what was found, without scoring: architecture, methods, special tokens, dtype."""
    from antlm_bench.commands.doctor import examine
    from antlm_bench.rendering import facts

    for found in examine(model, revision=revision, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle):
        facts(str(found["name"]), {key: value for key, value in found.items() if key != "name"})


@data.command("list")
def data_list(suites: Suites = None, json: Json = False, csv: Csv = False, markdown: Markdown = False) -> None:
    """What is here, suite by suite; of named suites, file by file."""
    form = one_format(json=json, csv=csv, markdown=markdown)
    from antlm_bench.commands.data import status
    from antlm_bench.rendering import catalog

    catalog(status(suites or ()), form)


@data.command("fetch")
def data_fetch(
    suites: Annotated[list[str], typer.Argument(metavar="SUITE...", help="Suites or collections.")],
    to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to fetch into.", show_default="the cache")
    ] = None,
) -> None:
    """Download from the official places, verify, store; a folder given by --to then serves as ANTLM_BENCH_DATA."""
    from antlm_bench.commands.data import fetch
    from antlm_bench.rendering import facts

    for row in fetch(suites, to):
        facts(row.pop("suite"), row)


@data.command("verify")
def data_verify(suites: Suites = None) -> None:
    """Read every file that is here and compare it with what is published."""
    from antlm_bench.commands.data import verify
    from antlm_bench.rendering import catalog

    verify(suites or (), partial(catalog, empty="no data files here"))


@data.command("where")
def data_where() -> None:
    """The folders that are searched, in order."""
    from antlm_bench.commands.data import where
    from antlm_bench.rendering import catalog

    catalog(where())


def run(argv: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    return exit_code(lambda: app(ours(argv) or ["--help"], prog_name="antlm-bench", standalone_mode=False), report)


def report(error: BenchError) -> None:
    from antlm_bench.rendering.terminal import problem

    problem(error)


def main() -> None:
    spin_briefly()
    sys.exit(run(sys.argv[1:]))
