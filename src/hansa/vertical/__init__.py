"""Different columns of the same people: private alignment, and learning on what nobody joins.

Names are handed on lazily: alignment needs no PyTorch, and its worker processes start without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_NAMES: dict[str, tuple[str, ...]] = {
    "glm": ("FittedGlm", "Glm"),
    "psi": ("Audit", "Keys", "align", "coordinate", "intersect"),
    "table": ("AlignedTable",),
}
_HOMES: dict[str, str] = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(
            f"module 'hansa.vertical' has no attribute '{name}': dir(hansa.vertical) lists what it has."
        )
    value = getattr(import_module(f"hansa.vertical.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if TYPE_CHECKING:
    from hansa.vertical.glm import FittedGlm as FittedGlm, Glm as Glm
    from hansa.vertical.psi import (
        Audit as Audit,
        Keys as Keys,
        align as align,
        coordinate as coordinate,
        intersect as intersect,
    )
    from hansa.vertical.table import AlignedTable as AlignedTable
