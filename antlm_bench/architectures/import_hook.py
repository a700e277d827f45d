"""Register our architectures with transformers' Auto classes, once transformers needs them.

`import antlm_bench` imports neither torch nor transformers. It installs an import hook
(`install_import_hook`) that wraps two methods of AutoConfig as soon as transformers defines it. Any
use of an unknown model type calls one of them, and the first call registers all architectures.
Registering earlier is not possible: our model files import transformers, which cannot be imported
while it is loading.

Every use of the package imports this module, and Ctrl-C during imports prints a traceback: it
imports nothing itself.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # typing takes a few milliseconds to import
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

AUTO_MODULE = "transformers.models.auto.configuration_auto"
WRAPPED_METHODS = ("from_pretrained", "for_model")  # of AutoConfig


def install_import_hook() -> None:
    """Wrap AutoConfig now, or as soon as it is imported. Repeated calls have no effect."""
    if AUTO_MODULE in sys.modules and hasattr(sys.modules[AUTO_MODULE], "AutoConfig"):
        _wrap_auto_config(sys.modules[AUTO_MODULE])
    elif not any(isinstance(finder, _AutoModuleFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AutoModuleFinder())


def _wrap_auto_config(module: ModuleType) -> None:
    """Make AutoConfig's methods register our architectures before they run."""
    for name in WRAPPED_METHODS:
        method = getattr(module.AutoConfig, name)
        if not getattr(method, "registers_antlm", False):
            setattr(module.AutoConfig, name, _with_registration(method))


def _with_registration(method: Any) -> Any:
    from functools import wraps

    from antlm_bench.architectures.registration import register_architectures

    @wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        register_architectures()
        return method(*args, **kwargs)

    wrapped.registers_antlm = True  # type: ignore[attr-defined]
    return staticmethod(wrapped)


class _AutoModuleFinder:
    """A meta path finder that wraps AutoConfig as soon as AUTO_MODULE has been executed.

    It leaves the finding itself to the other finders.
    """

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:  # noqa: ARG002 - the protocol's
        if name != AUTO_MODULE:
            return None
        from importlib.util import find_spec

        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_wrap(module: ModuleType) -> None:
            execute(module)
            _wrap_auto_config(module)

        spec.loader.exec_module = execute_and_wrap  # type: ignore[method-assign]
        return spec
