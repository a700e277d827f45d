"""`python -m antlm_bench.lm_eval_bridge ...`: run `lm_eval ...` with the model `antlm-bench` in its
registry.

lm_eval up to 0.4.13 knows only the models of its own source tree (MODEL_MAPPING in
lm_eval/models/__init__.py). Later versions read the entry point `lm_eval.models` of installed
packages, so that plain `lm_eval --model antlm-bench` works, too.
"""

from __future__ import annotations

import sys

from antlm_bench.cpu_tuning import limit_thread_spinning
from antlm_bench.errors import BenchError
from antlm_bench.lm_eval_bridge.registration import register_model
from antlm_bench.packages import require_packages


def main() -> int:
    """Run lm_eval's command line and return the exit code.

    Errors of antlm-bench are printed without a traceback; errors of lm_eval keep theirs.
    """
    limit_thread_spinning()
    from antlm_bench.console import print_error

    try:
        with require_packages():
            from lm_eval.__main__ import cli_evaluate

            register_model()
        cli_evaluate()
    except BenchError as error:
        print_error(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
