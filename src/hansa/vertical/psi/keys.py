"""Keys by which rows of different owners are matched: one or several columns, normalised, as 16-byte digests.

    bank:  Keys(["mail"])          " Ada@Example.org"  ─►  "ada@example.org"  ─►  BLAKE2b-128 under the session's salt
    shop:  Keys(["customer"])      "ada@example.org "  ─►  "ada@example.org"  ─►  the same 16 bytes

Columns may have other names at another owner; their number and the normalisation must be the same, which is compared by
hash before anything else is sent. A digest is no secret of its own: whoever guesses a key can compute it. It never
leaves an owner except under the keys of a protocol.
"""

import hashlib
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hansa.core.errors import ConfigError, DataError, require
from hansa.vertical.psi.tags import order_of

DIGEST_BYTES = 16
_NAMED = 5  # how many row numbers an error shows


STEPS: Mapping[str, Callable[[str], str]] = {
    "strip": str.strip,
    "casefold": str.casefold,
    "nfkc": lambda text: text if text.isascii() else unicodedata.normalize("NFKC", text),
    "digits": lambda text: "".join(each for each in text if each.isdecimal()),
    "alnum": lambda text: "".join(each for each in text if each.isalnum()),
}
# What would change nothing in a whole column, of which all texts stand one after another, is not done to each of them.
_IDLE: Mapping[str, Callable[[str], bool]] = {
    "strip": lambda whole: [whole] == whole.split(None, 1),  # no white space at all
    "casefold": lambda whole: whole.isascii() and whole.lower() == whole,
    "nfkc": str.isascii,
}


@dataclass(frozen=True)
class Keys:
    """Which columns are the key, and how their text is made comparable.

    Args:
      columns: of this owner's table; together they are one key.
      normalise: steps in order, the same at every owner: `strip` (white space at the ends), `nfkc` (Unicode forms that
        look alike), `casefold` (case), `digits` (keeps digits alone, as of telephone numbers), `alnum` (keeps letters
        and digits alone).
      duplicates: `refuse` a table in which a key occurs twice, or take its `first` row.

    >>> Keys("mail").normal([" Ada@Example.org"])
    ['ada@example.org']
    """

    columns: Sequence[str]
    normalise: Sequence[str] = ("strip", "nfkc", "casefold")
    duplicates: str = "refuse"

    def __post_init__(self) -> None:
        columns = (self.columns,) if isinstance(self.columns, str) else tuple(self.columns)
        steps = (self.normalise,) if isinstance(self.normalise, str) else tuple(self.normalise)
        require(len(columns) > 0, "columns=(): a key has at least one column.")
        require(len(set(columns)) == len(columns), f"columns={list(columns)}: one occurs twice.")
        unknown = [step for step in steps if step not in STEPS]
        require(not unknown, f"normalise={unknown} does not exist: choose from {', '.join(STEPS)}.")
        fault = f"duplicates='{self.duplicates}' does not exist: choose refuse or first."
        require(self.duplicates in ("refuse", "first"), fault)
        object.__setattr__(self, "columns", columns)
        object.__setattr__(self, "normalise", steps)

    def normal(self, texts: Sequence[str]) -> list[str]:
        """The texts, normalised."""
        made, whole = list(texts), "".join(texts)
        for name in self.normalise:
            if name not in _IDLE or not _IDLE[name](whole):
                made = list(map(STEPS[name], made))
                whole = "".join(made)
        return made

    def digests(self, table: Mapping[str, Any], salt: bytes, first: int = 0) -> NDArray[np.uint8]:
        """The digests of all rows' keys, of shape (rows, 16), in the order of the rows; duplicates are left in.

        Args:
          table: columns by name; those of the key hold text.
          salt: up to 16 bytes that all owners share in this session.
          first: the number of the first row, for errors.

        Raises:
          ConfigError: the table lacks a column of the key.
          DataError: a key is missing or no text; says in which rows.
        """
        absent = [name for name in self.columns if name not in table]
        if absent:
            raise ConfigError(f"the table has no columns {absent} for its key: it has {', '.join(table)}.")
        parts = [_encoded(name, self.normal(_texts(name, table[name], first)), first) for name in self.columns]
        whole = parts[0] if len(parts) == 1 else [_joined(row) for row in zip(*parts, strict=True)]
        fresh = hashlib.blake2b(digest_size=DIGEST_BYTES, salt=salt, person=b"hansa psi keys").copy
        made = bytearray()
        for each in whole:
            state = fresh()
            state.update(each)
            made += state.digest()
        return np.frombuffer(made, np.uint8).reshape(-1, DIGEST_BYTES)

    def distinct(self, digests: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The places to enter: all, or the first of each key, in order.

        Args:
          digests: of shape (rows, 16).
          rows: their numbers in the table, ascending, for errors.

        Raises:
          DataError: keys occur twice, and `duplicates` is `refuse`; says in which rows.
        """
        words = digests.view(np.uint64)
        order = order_of(words)
        same = (words[order[1:]] == words[order[:-1]]).all(axis=1)
        if same.any() and self.duplicates == "refuse":
            at = np.flatnonzero(same)[:_NAMED]
            pairs = ", ".join(f"{rows[order[i]]} and {rows[order[i + 1]]}" for i in at)
            raise DataError(
                f"{int(same.sum())} keys {list(self.columns)} occur again, as in rows {pairs} (counted from 0): "
                "remove them, or declare duplicates='first'."
            )
        keep = np.ones(len(digests), bool)
        keep[order[1:][same]] = False
        return np.flatnonzero(keep)


def _texts(name: str, values: Any, first: int) -> list[str]:
    column = np.asarray(values, object)
    require(column.ndim == 1, f"column '{name}' has shape {column.shape}: give one key for each row.")
    texts: list[Any] = column.tolist()
    if set(map(type, texts)) <= {str}:
        return texts
    wrong = [row for row, text in enumerate(texts) if not isinstance(text, str)]
    missing = [row for row in wrong if texts[row] is None or texts[row] != texts[row]]
    if missing:
        raise DataError(f"the key column '{name}' is empty in {_rows(missing, first)}: fill or drop them.")
    if wrong:
        kinds = sorted({type(texts[row]).__name__ for row in wrong[:1000]})
        raise DataError(
            f"the key column '{name}' holds {', '.join(kinds)} in {_rows(wrong, first)}: keys are text, since 7, 7.0 "
            "and '007' would not meet; read the column as text."
        )
    return texts


def _encoded(name: str, texts: Sequence[str], first: int) -> list[bytes]:
    if not all(texts):
        empty = [row for row, text in enumerate(texts) if not text]
        raise DataError(f"the key column '{name}' is empty after normalisation in {_rows(empty, first)}: drop them.")
    try:
        return [text.encode() for text in texts]
    except UnicodeEncodeError:
        wrong = [row for row, text in enumerate(texts) if not _well(text)]
        raise DataError(f"the key column '{name}' holds broken Unicode in {_rows(wrong, first)}: mend it.") from None


def _well(text: str) -> bool:
    return not any("\ud800" <= each <= "\udfff" for each in text)


def _rows(rows: Sequence[int], first: int) -> str:
    named = ", ".join(str(row + first) for row in rows[:_NAMED])
    more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    return f"row{'s' if len(rows) > 1 else ''} {named}{more} (counted from 0)"


def _joined(parts: tuple[bytes, ...]) -> bytes:
    """With their lengths, so that ("ab", "c") and ("a", "bc") are different keys."""
    return b"".join([len(part).to_bytes(4, "little") + part for part in parts])
