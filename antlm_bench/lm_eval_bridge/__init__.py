"""Both directions between antlm-bench and lm-evaluation-harness: this package's engine as a model
of lm-eval (`--model antlm-bench`), lm-eval's tasks as suites of `score`, and its result files.
"""
