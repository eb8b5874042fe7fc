"""Different columns of the same people: private alignment, and learning on what nobody joins.

Names are handed on lazily: alignment needs no PyTorch, and its worker processes start without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_NAMES: dict[str, tuple[str, ...]] = {
    "encode": ("agree_categories", "one_hot"),
    "features": ("correlation", "relate"),
    "glm": ("FittedGlm", "Glm"),
    "predict": ("Answer", "Asker", "People", "serve"),
    "psi": ("Audit", "Keys", "align", "coordinate", "intersect"),
    "saved": ("load_part", "save_part"),
    "scale": ("scalings",),
    "split": ("RandomisedResponse", "Relay", "RowNoise", "SplitLearning"),
    "table": ("AlignedTable",),
    "transfer": ("TransferLearning",),
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
    from hansa.vertical.encode import agree_categories as agree_categories, one_hot as one_hot
    from hansa.vertical.features import correlation as correlation, relate as relate
    from hansa.vertical.glm import FittedGlm as FittedGlm, Glm as Glm
    from hansa.vertical.predict import Answer as Answer, Asker as Asker, People as People, serve as serve
    from hansa.vertical.psi import (
        Audit as Audit,
        Keys as Keys,
        align as align,
        coordinate as coordinate,
        intersect as intersect,
    )
    from hansa.vertical.saved import load_part as load_part, save_part as save_part
    from hansa.vertical.scale import scalings as scalings
    from hansa.vertical.split import (
        RandomisedResponse as RandomisedResponse,
        Relay as Relay,
        RowNoise as RowNoise,
        SplitLearning as SplitLearning,
    )
    from hansa.vertical.table import AlignedTable as AlignedTable
    from hansa.vertical.transfer import TransferLearning as TransferLearning
