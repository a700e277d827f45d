"""Register our model in lm_eval, for `lm_eval.simple_evaluate` and old versions of lm_eval."""

from __future__ import annotations

from antlm_bench.lm_eval_bridge.shims import install_shims

MODEL_NAME, MODEL_CLASS = "antlm-bench", "antlm_bench.lm_eval_bridge.model:AntlmBench"


def register_model() -> None:
    """Register `model="antlm-bench"` in this process, unless it is registered, and install the
    shims that lm-eval's tasks import.
    """
    import lm_eval.models  # noqa: F401 - lm_eval fills its registry only while it is empty
    from lm_eval.api.registry import model_registry

    install_shims()
    if MODEL_NAME not in model_registry:
        model_registry.register(MODEL_NAME, target=MODEL_CLASS)
