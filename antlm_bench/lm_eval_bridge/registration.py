"""Register the model `antlm-bench` in lm_eval.

Needed up to lm-eval 0.4.13. Later versions read the entry point `lm_eval.models`.
"""

from __future__ import annotations

from antlm_bench.lm_eval_bridge.shims import install_shims

MODEL_NAME, MODEL_CLASS = "antlm-bench", "antlm_bench.lm_eval_bridge.model:AntlmBench"


def register_model() -> None:
    """Register `model="antlm-bench"` in this process, and install the shims for lm-eval's tasks."""
    # Import first: lm_eval adds its own models at this import, and only to an empty registry.
    import lm_eval.models  # noqa: F401
    from lm_eval.api.registry import model_registry

    install_shims()
    if MODEL_NAME not in model_registry:
        model_registry.register(MODEL_NAME, target=MODEL_CLASS)
