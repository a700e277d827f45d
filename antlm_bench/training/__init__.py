"""Training: a recipe (recipe, schedule) and text (corpus) in, checkpoints of the literature out,
from one loop.
"""
