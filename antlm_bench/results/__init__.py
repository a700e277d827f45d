"""What is derived from runs and used by several commands: averaged seeds, members of collections,
reports, series of checkpoints, training logs, model names.

The package takes runs and comparisons and gives data. It must not know commands or reporting.
"""
