"""Which tensors stay, and which stand still, by patterns of their names: `head.*`, `*.running_mean`, `0.weight`."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from hansa.core.errors import ConfigError
from hansa.core.model import Role


def assign(own: Mapping[str, Role], private: Sequence[str] = (), frozen: Sequence[str] = ()) -> dict[str, Role]:
    """The roles of all tensors that are not trainable.

    Args:
      own: every tensor of the model with the role that its library suggests.
      private: names or patterns of tensors that never leave the worker.
      frozen: names or patterns of tensors that are not trained.

    Raises:
      ConfigError: a pattern fits no tensor, or a tensor is to be both private and frozen.

    >>> assign({"body.w": Role.TRAINABLE, "head.w": Role.TRAINABLE}, private=["head.*"])
    {'head.w': <Role.PRIVATE: 'private'>}
    """
    kept, still = _matching(own, private, "private"), _matching(own, frozen, "frozen")
    if kept & still:
        raise ConfigError(f"{sorted(kept & still)} are named both private and frozen: choose one.")
    given = {**own, **dict.fromkeys(kept, Role.PRIVATE), **dict.fromkeys(still, Role.FROZEN)}
    return {name: role for name, role in sorted(given.items()) if role != Role.TRAINABLE}


def patterns(given: str | Iterable[str], name: str) -> tuple[str, ...]:
    """Patterns as a tuple, ConfigError for a bare string, which would be read letter by letter."""
    if isinstance(given, str):
        raise ConfigError(f"{name}={given!r}: give a sequence of patterns, as in {name}=({given!r},).")
    return tuple(given)


def _matching(names: Iterable[str], wanted: Sequence[str], field: str) -> set[str]:
    names = list(names)
    found: set[str] = set()
    for pattern in wanted:
        fits = {name for name in names if name == pattern or fnmatchcase(name, pattern)}
        if not fits:
            raise ConfigError(f"{field}={pattern!r} fits no tensor of the model, which has {sorted(names)[:8]}.")
        found |= fits
    return found
