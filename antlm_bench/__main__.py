"""`python -m antlm_bench` is the same command as `antlm-bench`."""

import os

# The module `signal` takes milliseconds to import.
from _signal import SIGINT, signal  # type: ignore[import-not-found]

CTRL_C = 130


def main() -> None:
    """Run the command line of this process, and exit."""
    # Nothing else is imported before this line: Ctrl-C during an import prints a traceback.
    signal(SIGINT, lambda *_: os._exit(CTRL_C))
    from antlm_bench.cli.process import prepare_process

    prepare_process()
    from antlm_bench.cli import app

    app.main()


if __name__ == "__main__":
    main()
