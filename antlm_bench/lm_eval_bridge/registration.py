"""Register the model `antlm-bench` in lm_eval, for old versions and `lm_eval.simple_evaluate`."""

from __future__ import annotations

from antlm_bench.lm_eval_bridge.shims import install_shims

MODEL_NAME, MODEL_CLASS = "antlm-bench", "antlm_bench.lm_eval_bridge.model:AntlmBench"


def register_model() -> None:
    """Register `model="antlm-bench"` in this process, and install the shims of lm-eval's tasks."""
    # lm_eval fills its registry at this import, and only if it is empty.
    import lm_eval.models  # noqa: F401
    from lm_eval.api.registry import model_registry

    install_shims()
    if MODEL_NAME not in model_registry:
        model_registry.register(MODEL_NAME, target=MODEL_CLASS)
