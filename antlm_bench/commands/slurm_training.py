"""`train --executor slurm`: submit a training on one or more nodes to Slurm."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from antlm_bench.commands.train import TrainOptions, check_training
from antlm_bench.errors import UsageError
from antlm_bench.runs.folder_io import make_folder
from antlm_bench.runs.provenance import EXECUTOR_VARIABLE
from antlm_bench.sweeps import slurm_script

SCRIPT_NAME = "slurm.sh"
FLAGS = {
    "scale": "--scale",
    "changes": "--set",
    "teachers": "--teacher",
    "resume": "--resume",
    "device": "--device",
    "precision": "--precision",
    "micro_tokens": "--batch-tokens",
    "compiled": "--compile",
    "save_every": "--save-every",
    "trackers": "--track",
}
"""Field of TrainOptions -> flag of the command line."""
# srun starts the processes, not `accelerate launch`, so that signals reach the training itself.
LAUNCH_LINES = r"""
# The processes find each other by these variables, as under torchrun and `accelerate launch`.
export MASTER_ADDR=$(hostname)
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
start='export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
export LOCAL_WORLD_SIZE=$((SLURM_NTASKS / SLURM_JOB_NUM_NODES))
exec "$@"'
""".splitlines()


class SlurmTrainingSettings(slurm_script.SlurmSettings):
    """Settings of a training job."""

    nodes: int = 1
    processes: int | None = None
    """Processes per node; None = the GPUs of `gres`, else 1."""


@dataclass(frozen=True)
class SlurmTraining:
    """A training that was submitted, or only written."""

    script: Path
    job: str
    """Id of the job; "" = not submitted."""

    @property
    def log(self) -> Path:
        """The file with the output of the job."""
        return self.script.with_name(f"slurm-{self.job or '%j'}.out")


def submit_training(
    recipe: str,
    corpus: str,
    out: Path,
    options: TrainOptions,
    settings: Mapping[str, Any],
    submit: bool = True,
) -> SlurmTraining:
    """Write OUT/slurm.sh, which trains a recipe as `train` does, and submit it.

    settings: of SlurmTrainingSettings. submit: False = only write the script. Raises what `train`
    raises for wrong options, DeclarationError for wrong settings, UsageError if a job trains into
    the folder already, and RunError if sbatch refuses the job.
    """
    job_settings = slurm_script.read_settings(settings, SlurmTrainingSettings)
    check_training(recipe, corpus, options)
    if submit:
        slurm_script.check_slurm_is_installed()
    job_name = slurm_script.name_job("antlm-train", out)
    if submit and (
        job := slurm_script.run_slurm_command("squeue", "--me", f"--name={job_name}", "--noheader")
    ):
        raise UsageError(
            f"Slurm job {job.split()[0]} trains into this folder already",
            location=str(out),
            hint=f"wait for it, or cancel it: scancel {job.split()[0]}",
        )
    make_folder(out)
    script = out / SCRIPT_NAME
    command = build_train_command(recipe, corpus, out, options)
    slurm_script.write_script(script, _build_script(script, job_name, command, job_settings))
    return SlurmTraining(script, slurm_script.submit_script(script) if submit else "")


def build_train_command(recipe: str, corpus: str, out: Path, options: TrainOptions) -> list[str]:
    """Return the command line that trains with these options in this process's Python."""
    program = [sys.executable, "-m", "antlm_bench", "train"]
    command = [*program, recipe, "--corpus", corpus, "--out", str(out)]
    for field in fields(TrainOptions):
        value = getattr(options, field.name)
        is_empty = value is None or value is False or value in ("", (), [])
        if field.name not in FLAGS or is_empty or value == field.default:
            continue
        flag = FLAGS[field.name]
        values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        command += [flag] if value is True else [f"{flag}={each}" for each in values]
    return command


def _build_script(
    script: Path, job_name: str, command: Sequence[str], settings: SlurmTrainingSettings
) -> list[str]:
    processes = settings.processes or count_gpus(settings.gres)
    cpus = settings.cpus or 1
    directives = slurm_script.list_directives(
        settings,
        job_name,
        script.resolve().with_name("slurm-%j.out"),
        nodes=settings.nodes,
        ntasks_per_node=processes,
        cpus_per_task=cpus,
    )
    # The others end first; the main process still saves the state, or scores the last checkpoint.
    patience = ("--kill-on-bad-exit=0", "--wait=0")
    srun = ["srun", *patience, f"--cpus-per-task={cpus}", "bash", "-c"]
    return [
        "#!/bin/bash",
        "# A training; the same command continues it. You may change this file: the next",
        "# `antlm-bench train` then uses it. To submit it by hand:",
        f"#   {shlex.join(['sbatch', str(script)])}",
        *directives,
        "",
        *settings.setup,
        f"export OMP_NUM_THREADS={cpus} {EXECUTOR_VARIABLE}=slurm",
        *LAUNCH_LINES,
        "",
        *slurm_script.list_run_lines(
            f'{shlex.join(srun)} "$start" - {shlex.join(command)}', "The training"
        ),
    ]


def count_gpus(gres: str) -> int:
    """Return the number of GPUs that a text of --gres asks for; 1 if there is none in it."""
    match = re.search(r"(?:^|,)(?:gres/)?gpu(?::[A-Za-z][^:,]*)?:(\d+)", gres)
    return int(match[1]) if match else 1
