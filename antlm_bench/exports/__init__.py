"""Runs become other people's documents (leaderboard files, harness results, tables): no model, no
torch.
"""
