"""Model architectures that `train` builds.

Each of our own model files imports nothing but torch and transformers, so that checkpoints can
include it.
"""
