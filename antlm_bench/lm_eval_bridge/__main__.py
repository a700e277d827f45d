"""`python -m antlm_bench.lm_eval_bridge ...` is `lm_eval ...` with our model in its registry.

lm_eval 0.4.13 knows the models of its own source tree only (MODEL_MAPPING in
lm_eval/models/__init__.py). Versions after it read the entry point `lm_eval.models` of installed
packages, which pyproject.toml declares; with them plain `lm_eval --model antlm-bench` does the
same.
"""

from __future__ import annotations

import sys

from antlm_bench.cpu_tuning import limit_thread_spinning
from antlm_bench.errors import BenchError
from antlm_bench.lm_eval_bridge.registration import register_model


def main() -> int:
    """lm_eval's exit code, or ours where an error is ours; the harness's own errors keep their
    traceback.
    """
    limit_thread_spinning()
    from lm_eval.__main__ import cli_evaluate

    from antlm_bench.console import print_error

    register_model()
    try:
        cli_evaluate()
    except BenchError as error:
        print_error(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
