"""Data derived from runs that several commands use: averaged seeds, members of collections,
reports, model cards, series of checkpoints, training logs, model names.
"""
