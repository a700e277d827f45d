"""The command `train`: pretrain a model by a recipe on a text corpus."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from antlm_bench.cli.shared_options import (
    BatchTokensOption,
    ExecutorOptionsOption,
    OverridesOption,
    ScaleOption,
    Tables,
    build_options,
    check_overrides,
    model_option,
    parse_executor_options,
    prints_tables,
    refuse_options,
    run_folder_option,
    settings_option,
)
from antlm_bench.safe_files import refuse_url


@prints_tables()
def train_command(
    recipe: Annotated[
        str, typer.Argument(help="A recipe (`antlm-bench list models`), or your own .toml.")
    ],
    corpus: Annotated[
        str,
        model_option(
            metavar="TEXT", help="Folder of .txt .train .jsonl (or .gz), `nano`, or a hub dataset."
        ),
    ],
    out: Annotated[
        Path,
        run_folder_option(
            metavar="DIR", help="Folder for checkpoints, log and state.", callback=refuse_url
        ),
    ],
    scale: ScaleOption = "",
    overrides: OverridesOption = None,
    teacher: Annotated[
        list[str] | None,
        model_option(
            metavar="CKPT",
            help="Teacher checkpoints of a distillation recipe, in order.",
            show_default="trained first",
        ),
    ] = None,
    resume: Annotated[
        bool,
        run_folder_option(
            "--resume",
            help="Fail if there is no run to resume. (A run is resumed without this option, too.)",
        ),
    ] = False,
    save_every: Annotated[
        float, run_folder_option(metavar="MIN", min=0, help="Minutes between two saved states.")
    ] = 10.0,
    device: Annotated[
        Literal["auto", "cpu"],
        settings_option(metavar="NAME", help="auto (Accelerate's choice) or cpu."),
    ] = "auto",
    precision: Annotated[
        Literal["float32", "bfloat16"],
        settings_option(metavar="NAME", help="dtype of matrix products: float32, bfloat16."),
    ] = "float32",
    batch_tokens: BatchTokensOption = None,
    compiled: Annotated[
        bool,
        settings_option("--compile", help="Use torch.compile; faster in long runs."),
    ] = False,
    track: Annotated[
        list[str] | None,
        run_folder_option(
            metavar="NAME", help="Experiment tracker: tensorboard, wandb, trackio, ... Repeatable."
        ),
    ] = None,
    executor: Annotated[
        Literal["local", "slurm"],
        settings_option(metavar="NAME", help="local, or slurm: submit the training as a job."),
    ] = "local",
    executor_option: ExecutorOptionsOption = None,
    script_only: Annotated[
        bool,
        settings_option("--script-only", help="With slurm: write the script, submit nothing."),
    ] = False,
) -> Tables:
    """Pretrain a model by a recipe; write its checkpoints, a log and a state to resume."""
    check_overrides(overrides)

    from antlm_bench.commands.train import TrainOptions, train
    from antlm_bench.reporting.table import build_facts_table

    # The arguments of this function have the names of the options' fields, or are renamed here.
    options = build_options(
        TrainOptions,
        locals(),
        changes=overrides,
        teachers=teacher,
        micro_tokens=batch_tokens,
        trackers=track,
    )
    if executor == "slurm":
        from antlm_bench.commands.slurm_training import submit_training

        job_settings = parse_executor_options(executor_option)
        job = submit_training(recipe, corpus, out, options, job_settings, not script_only)
        submit_command = shlex.join(["sbatch", str(job.script)])
        facts = {"script": str(job.script), "log": str(job.log)}
        facts |= {"job": job.job} if job.job else {"submit it": submit_command}
        yield build_facts_table(recipe, facts)
        return
    refuse_options(
        {"--executor-option": executor_option, "--script-only": script_only},
        "a training in this process has no executor",
        "use it with --executor slurm",
    )
    checkpoint = train(recipe, corpus, out, options)
    if os.environ.get("RANK", "0") == "0":  # only the first process of torchrun prints
        suite = corpus if corpus == "nano" else "blimp"
        words = ["antlm-bench", "score", "--model", str(checkpoint), "--suite", suite]
        score_command = shlex.join([*words, "--method", "all"])
        facts = {"checkpoint": str(checkpoint), "score it": score_command}
        yield build_facts_table(recipe, facts)
