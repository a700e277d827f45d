"""Our engine as a model of lm-evaluation-harness (`--model antlm-bench`), whose tasks may then ask
it anything; and what `score` needs of that, too.
"""
