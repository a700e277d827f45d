"""antlm-bench: honest, fast, comparable numbers for small language models. `from antlm_bench import
score`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from antlm_bench.architectures.registration import install_import_hook

__version__ = "0.1.0"
__all__ = ["__version__", "score"]

install_import_hook()  # transformers will know our architectures, if and when it is imported

if TYPE_CHECKING:
    from antlm_bench.commands.score import score


def __getattr__(name: str) -> Any:
    """Resolve the Python API on first use, so that importing the package does nothing."""
    if name == "score":
        from antlm_bench.commands.score import score

        return score
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
