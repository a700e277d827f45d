"""Runs as other people's documents: leaderboard files, lm-eval's results, tables, model cards.

Takes run folders and the suites' data, gives bytes and dictionaries; knows no model and no torch.
"""
