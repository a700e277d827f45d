"""The former name of `python -m antlm_bench.lm_eval_bridge`, kept so that old command lines
work.
"""

import sys

from antlm_bench.lm_eval_bridge.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
