"""Our model under its name in lm_eval's registry, for `lm_eval.simple_evaluate` and versions
without entry points.
"""

from __future__ import annotations

from antlm_bench.lm_eval_bridge.shims import install_shims

MODEL_NAME, MODEL_CLASS = "antlm-bench", "antlm_bench.lm_eval_bridge.model:AntlmBench"


def register_model() -> None:
    """Make `model="antlm-bench"` known in this process, unless it is: called twice, or found as an
    entry point; and let the harness's tasks import what libraries no longer have
    (lm_eval_bridge.shims).
    """
    import lm_eval.models  # noqa: F401 - lm_eval fills its registry only while it is empty
    from lm_eval.api.registry import model_registry

    install_shims()
    if MODEL_NAME not in model_registry:
        model_registry.register(MODEL_NAME, target=MODEL_CLASS)
