"""The old name of `python -m antlm_bench.lm_eval_bridge`; old command lines still work."""

import sys

from antlm_bench.lm_eval_bridge.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
