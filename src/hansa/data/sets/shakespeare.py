"""Shakespeare from `HANSA_DATA/shakespeare/`, for learning to write the next character.

`shakespeare()` has one client for each role of each play (McMahan 2017; LEAF), `tinyshakespeare()` is one text.
Characters are coded by their place in ALPHABET, which is fixed, so that all parties and both texts agree.

    plays.tar.xz                one file a play: speakers at the margin, speech indented, **** before acts and scenes
    tinyshakespeare.txt.gz      plain text

Source: McMahan et al. 2017, section 3, https://arxiv.org/abs/1602.05629; Caldas et al. 2018,
https://arxiv.org/abs/1812.01097; Karpathy 2015, https://github.com/karpathy/char-rnn
"""

import gzip
import lzma
import re
import tarfile
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from hansa.core.data import Clients, Dataset
from hansa.core.errors import DataError, NotFound
from hansa.data.sets.folder import data_file

ALPHABET = "\n !$&'()*,-.0123456789:;?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]_abcdefghijklmnopqrstuvwxyz|"


def shakespeare(length: int = 80, min_lines: int = 2) -> tuple[Clients, Clients]:
    """The roles of 36 plays, as clients named 'Hamlet/HORATIO'.

    Args:
      length: characters in one example.
      min_lines: roles with fewer lines are left out; at least 2, since each role trains on its first lines (four
        fifths) and is tested on the others.

    Returns:
      Clients to train on, and the same clients to test on. Opened, a client is a Dataset of codes: x, int64 of shape
      (examples, length), and y, of the same shape, the characters one further on. Examples follow one another; the
      last one reaches back, and a text shorter than an example is filled up in front with newlines.

    Raises:
      DataError: HANSA_DATA is not set, or the file is missing or damaged.
    """
    if min_lines < 2:
        raise DataError(f"min_lines={min_lines} must be at least 2: one line to train on, one to test.")
    _check_length(length)
    kept = {role: lines for role, lines in roles().items() if len(lines) >= min_lines}
    if not kept:
        raise DataError(f"min_lines={min_lines} leaves no role: lower it.")
    ids = sorted(kept)
    cuts = {role: min(-(-len(kept[role]) * 4 // 5), len(kept[role]) - 1) for role in ids}
    train = _Roles(ids, ["\n".join(kept[role][: cuts[role]]) for role in ids], length)
    test = _Roles(ids, ["\n".join(kept[role][cuts[role] :]) for role in ids], length)
    return train, test


def tinyshakespeare(length: int = 80) -> Dataset:
    """Karpathy's text of 1,115,394 characters as examples that follow one another; columns as in `shakespeare`."""
    _check_length(length)
    path = data_file("shakespeare/tinyshakespeare.txt.gz")
    try:
        text = gzip.decompress(path.read_bytes()).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError):
        raise DataError(f"'{path}' is not a whole gzip file of text: fetch it anew.") from None
    return windows(encode(text), length)


def roles() -> dict[str, list[str]]:
    """The lines of every role, by 'play/ROLE'; stage directions inside speeches stay."""
    path = data_file("shakespeare/plays.tar.xz")
    found: dict[str, list[str]] = {}
    try:
        with tarfile.open(path, "r:xz") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.name.endswith(".txt") else None
                if content is not None:
                    play = member.name.rpartition("/")[2].removesuffix(".txt")
                    lines = parse_play(content.read().decode())
                    found.update({f"{play}/{role}": spoken for role, spoken in lines.items()})
    except (tarfile.TarError, lzma.LZMAError, EOFError, UnicodeDecodeError):
        raise DataError(f"'{path}' is not a whole tar.xz archive of texts: fetch it anew.") from None
    return found


def parse_play(text: str) -> dict[str, list[str]]:
    """The lines of every role of one play. A line at the margin names who speaks the indented ones that follow.

    >>> parse_play("**** SCENE V. ****\\n     Enter both\\nHAMLET\\n     Speak;\\n     I am bound.\\nGhost\\n     So.")
    {'HAMLET': ['Speak;', 'I am bound.'], 'GHOST': ['So.']}
    """
    spoken: dict[str, list[str]] = {}
    role = None
    for line in text.splitlines():
        if line.startswith("****") or re.match(r"(scene|act) [ivx]+\b", line, re.IGNORECASE):
            role = None
        elif line.strip() and not line.startswith(" "):
            role = line.strip().rstrip(":").upper()
        elif line.strip() and role:
            spoken.setdefault(role, []).append(line.strip())
    return spoken


def encode(text: str) -> np.ndarray:
    """Codes, int64 of shape (characters,); a character outside ALPHABET becomes a space.

    >>> encode("To\\n").tolist() == [ALPHABET.index(character) for character in "To\\n"]
    True
    """
    code = np.full(128, ALPHABET.index(" "), dtype=np.int64)
    code[[ord(character) for character in ALPHABET]] = np.arange(len(ALPHABET))
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    return code[np.where(points < 128, points, ord(" "))]


def windows(codes: np.ndarray, length: int) -> Dataset:
    """Examples of `length` characters and the same one further on, that together cover the text.

    >>> windows(np.arange(8), 3)["x"].tolist(), windows(np.arange(8), 3)["y"].tolist()
    ([[0, 1, 2], [3, 4, 5], [4, 5, 6]], [[1, 2, 3], [4, 5, 6], [5, 6, 7]])
    """
    short = length + 1 - len(codes)
    if short > 0:
        codes = np.concatenate([np.full(short, ALPHABET.index("\n")), codes])
    last = len(codes) - length - 1
    starts = np.append(np.arange(0, last, length), last)
    places = starts[:, None] + np.arange(length)
    return Dataset(x=codes[places], y=codes[places + 1])


class _Roles(Clients):
    """Texts by role, cut into examples when a role is opened."""

    def __init__(self, ids: Sequence[str], texts: Sequence[str], length: int) -> None:
        self._ids = ids
        self._texts: Mapping[str, str] = dict(zip(ids, texts, strict=True))
        self._length = length

    @property
    def ids(self) -> Sequence[str]:
        return self._ids

    def open(self, client: str) -> Dataset:
        if client not in self._texts:
            raise NotFound(f"no role '{client}' among {len(self._ids)} (the first is '{self._ids[0]}').")
        return windows(encode(self._texts[client]), self._length)


def _check_length(length: int) -> None:
    if length < 1:
        raise DataError(f"length={length} must be at least 1 character.")
