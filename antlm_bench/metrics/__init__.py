"""From predictions to the numbers that get published: credit per item, macro-average, interval, flags.

Everything here is recomputed from stored predictions at will; nothing needs the model or the texts.
"""

from antlm_bench.metrics.summary import METRICS, TIES, summarize

__all__ = ["METRICS", "TIES", "summarize"]
