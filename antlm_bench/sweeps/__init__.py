"""Sweeps: many checkpoints, suites, tasks and seeds as one list of units of work."""
