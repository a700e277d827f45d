"""References to checkpoints in a sweep: those that a train stage of the sweep writes."""

from __future__ import annotations

from pathlib import Path

STAGE_PREFIX = "stage:"
MODELS_DIR, RUNS_DIR = "models", "runs"
"""Subfolders of a sweep's folder, for trained models and for run folders."""


def resolve_model(model: str, sweep_dir: Path) -> str:
    """Return a checkpoint as commands take it: one of a train stage lies in the sweep's folder."""
    if not model.startswith(STAGE_PREFIX):
        return model
    return str(sweep_dir / MODELS_DIR / model.removeprefix(STAGE_PREFIX))
