"""From predictions to the numbers that get published: credit per item, macro-average, interval, flags.

Everything here is recomputed from stored predictions at will; nothing needs the model or the texts.
"""

from antlm_bench.metrics.classification import FEW_SEEDS, Spread, across_seeds, collapsed, contributions
from antlm_bench.metrics.summary import LOWER_IS_BETTER, METRICS, TIES, resolve, summarize

__all__ = [
    "FEW_SEEDS",
    "LOWER_IS_BETTER",
    "METRICS",
    "TIES",
    "Spread",
    "across_seeds",
    "collapsed",
    "contributions",
    "resolve",
    "summarize",
]
