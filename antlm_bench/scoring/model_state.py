"""The state of a model beside its weights: submodules, buffers and plain attributes.

Some forwards change their model (BigBird gives up its sparse attention for good after one short
row), so that an output depends on earlier inputs. `ModelState` detects that and restores the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Dictionaries of a module that are compared entry by entry.
_CONTAINER_ATTRIBUTES = ("_modules", "_buffers")


def _is_comparable(value: Any) -> bool:
    """Return whether an attribute is a number, a string, None or a tuple of such."""
    if isinstance(value, tuple):
        return all(_is_comparable(part) for part in value)
    return value is None or (isinstance(value, int | float | str) and value == value)


@dataclass(frozen=True, slots=True)
class ModelState:
    """A copy of everything that a forward could change."""

    modules: tuple[
        tuple[nn.Module, dict[str, Any], dict[str, dict[str, Any]], dict[str, Tensor]], ...
    ]
    """Per module: itself, its plain attributes, its submodules and buffers, the buffers' values."""

    @classmethod
    def capture(cls, model: nn.Module) -> ModelState:
        """Copy a model's present state."""
        return cls(
            tuple(
                (
                    module,
                    {k: v for k, v in vars(module).items() if _is_comparable(v)},
                    {part: dict(vars(module)[part]) for part in _CONTAINER_ATTRIBUTES},
                    {
                        k: v.clone()
                        for k, v in vars(module)["_buffers"].items()
                        if isinstance(v, Tensor)
                    },
                )
                for module in model.modules()
            )
        )

    def has_changed(self) -> bool:
        """Return whether anything differs from the copy."""
        return any(self._differs(*entry) for entry in self.modules)

    def restore(self) -> None:
        """Restore what differs."""
        for module, plain, parts, values in self.modules:
            if not self._differs(module, plain, parts, values):
                continue
            for name in [
                k for k, v in vars(module).items() if _is_comparable(v) and k not in plain
            ]:
                del vars(module)[name]
            vars(module).update(plain)
            for part, entries in parts.items():
                vars(module)[part].clear()
                vars(module)[part].update(entries)
            with torch.no_grad():
                for name, value in values.items():
                    vars(module)["_buffers"][name].copy_(value)

    @staticmethod
    def _differs(
        module: nn.Module,
        plain: dict[str, Any],
        parts: dict[str, dict[str, Any]],
        values: dict[str, Tensor],
    ) -> bool:
        now = vars(module)
        if {k: v for k, v in now.items() if _is_comparable(v)} != plain:
            return True
        for part, entries in parts.items():
            if now[part].keys() != entries.keys() or any(
                now[part][k] is not v for k, v in entries.items()
            ):
                return True
        return any(not torch.equal(now["_buffers"][name], value) for name, value in values.items())


class ModuleSwaps:
    """Submodules of a model that were replaced; the replacement can be undone and redone."""

    def __init__(self, swaps: list[tuple[nn.Module, str, nn.Module, nn.Module]]) -> None:
        self.swaps = swaps

    @classmethod
    def record(cls, model: nn.Module, swap: Callable[[], None]) -> ModuleSwaps:
        """Run `swap` and record which submodules it replaces."""
        before = {
            (parent, name): child
            for parent in model.modules()
            for name, child in parent.named_children()
        }
        swap()
        return cls(
            [
                (parent, name, child, getattr(parent, name))
                for (parent, name), child in before.items()
                if getattr(parent, name, None) is not child
            ]
        )

    def undo(self) -> None:
        """Put the plain submodules back."""
        for parent, name, plain, _ in self.swaps:
            setattr(parent, name, plain)

    def redo(self) -> None:
        """Put the replacements back."""
        for parent, name, _, replacement in self.swaps:
            setattr(parent, name, replacement)
