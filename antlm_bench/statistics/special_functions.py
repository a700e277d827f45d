"""Functions of scipy.special, which is imported when one is called: it takes 0.2 CPU seconds.

A misspelt name of a run is reported before anything is computed. See scipy's documentation.
"""

from __future__ import annotations

from antlm_bench.registry import deferred

betaincinv = deferred("scipy.special:betaincinv")
chdtri = deferred("scipy.special:chdtri")
expit = deferred("scipy.special:expit")
gammaincc = deferred("scipy.special:gammaincc")
logit = deferred("scipy.special:logit")
nctdtr = deferred("scipy.special:nctdtr")
ndtr = deferred("scipy.special:ndtr")
ndtri = deferred("scipy.special:ndtri")
softmax = deferred("scipy.special:softmax")
stdtr = deferred("scipy.special:stdtr")
stdtridf = deferred("scipy.special:stdtridf")
stdtrit = deferred("scipy.special:stdtrit")
