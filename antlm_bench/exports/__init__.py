"""Export runs to other formats: leaderboard submissions, item tables, Every Eval Ever.

Reads run folders and the data of suites; returns bytes and dictionaries. Does not import torch.
"""
