"""Carry out the sweep in a folder with fake units, as `antlm-bench run` does, in a process that
tests can kill.

python fake_driver.py DIR WORKERS [RETRIES [EXECUTOR OPTIONS]]    (OPTIONS is JSON)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from antlm_bench.cli.stop_signals import end_on_signals
from antlm_bench.commands.sweep import RunSweepOptions, run_sweep
from antlm_bench.errors import BenchError
from antlm_bench.sweeps.store import FolderStore

WORKER = (sys.executable, str(Path(__file__).with_name("fake_units.py")))


def main() -> int:
    end_on_signals()
    folder, workers = Path(sys.argv[1]), int(sys.argv[2])
    retries = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    executor = sys.argv[4] if len(sys.argv) > 4 else "local"
    executor_options = {"poll_seconds": 0.2} if executor == "slurm" else {}
    if len(sys.argv) > 5:
        executor_options = json.loads(sys.argv[5])
    options = RunSweepOptions(
        executor,
        workers=workers,
        threads=1,
        retries=retries,
        executor_options=executor_options,
        worker_command=WORKER,
    )
    try:
        status = run_sweep(FolderStore(folder).read_sweep(), folder, options)
    except BenchError as error:
        print(error)
        return error.exit_code
    return 0 if status.is_complete else 5


if __name__ == "__main__":
    sys.exit(main())
