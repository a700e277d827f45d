"""Architectures of our own: one file each, with torch and transformers alone, so that a checkpoint
can carry it.
"""
