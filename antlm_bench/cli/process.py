"""What a process of the command line does before it imports anything that takes time."""

from antlm_bench.cli.standard_streams import replace_standard_streams
from antlm_bench.cli.stop_signals import end_on_signals


def prepare_process() -> None:
    """Set up the ends of this process: signals, and failures of stdout and stderr."""
    end_on_signals()
    replace_standard_streams()
