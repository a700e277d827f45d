"""Capture and restore the state of a model except its weights: submodules, buffers, attributes.

Some forwards change their model, so that outputs depend on earlier inputs: after one short row,
BigBird uses full instead of sparse attention permanently. `ModelState` detects and undoes that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


def _plain_attributes(module: nn.Module) -> dict[str, Any]:
    """Return a module's attributes that are numbers, strings, None or tuples of these."""
    return {name: value for name, value in vars(module).items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_plain(element) for element in value)
    return value is None or (isinstance(value, int | float | str) and value == value)  # not NaN


@dataclass(frozen=True, slots=True)
class ModuleState:
    """A copy of everything in one module that a forward could change."""

    module: nn.Module
    attributes: dict[str, Any]
    """The plain attributes."""
    submodules: dict[str, Any]
    buffers: dict[str, Any]
    buffer_values: dict[str, Tensor]
    """Copies of the buffers, which may be changed in place."""

    @classmethod
    def capture(cls, module: nn.Module) -> ModuleState:
        buffers = dict(module._buffers)
        values = {name: b.clone() for name, b in buffers.items() if isinstance(b, Tensor)}
        return cls(module, _plain_attributes(module), dict(module._modules), buffers, values)

    def has_changed(self) -> bool:
        return (
            _plain_attributes(self.module) != self.attributes
            or _entries_differ(self.module._modules, self.submodules)
            or _entries_differ(self.module._buffers, self.buffers)
            or any(not torch.equal(self.buffers[n], v) for n, v in self.buffer_values.items())
        )

    def restore(self) -> None:
        for name in _plain_attributes(self.module).keys() - self.attributes.keys():
            del vars(self.module)[name]
        vars(self.module).update(self.attributes)
        for current, saved in (
            (self.module._modules, self.submodules),
            (self.module._buffers, self.buffers),
        ):
            current.clear()
            current.update(saved)
        with torch.no_grad():
            for name, value in self.buffer_values.items():
                self.buffers[name].copy_(value)


def _entries_differ(current: dict[str, Any], saved: dict[str, Any]) -> bool:
    if current.keys() != saved.keys():
        return True
    return any(current[name] is not value for name, value in saved.items())


@dataclass(frozen=True, slots=True)
class ModelState:
    """A copy of everything in a model that a forward could change, except its weights."""

    modules: tuple[ModuleState, ...]

    @classmethod
    def capture(cls, model: nn.Module) -> ModelState:
        """Copy a model's present state."""
        return cls(tuple(map(ModuleState.capture, model.modules())))

    def has_changed(self) -> bool:
        """Return whether anything differs from the copy."""
        return any(state.has_changed() for state in self.modules)

    def restore(self) -> None:
        """Restore the modules that differ from the copy."""
        for state in self.modules:
            if state.has_changed():
                state.restore()


class ModuleSwaps:
    """Submodules of a model that were replaced. The replacement can be undone and redone."""

    def __init__(self, swaps: list[tuple[nn.Module, str, nn.Module, nn.Module]]) -> None:
        self.swaps = swaps
        """(parent, name of the child, plain child, replacement) of each replaced submodule."""

    @classmethod
    def record(cls, model: nn.Module, swap: Callable[[], None]) -> ModuleSwaps:
        """Call `swap` and record which submodules it replaces."""
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
