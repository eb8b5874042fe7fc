"""Shares as files: data and models that wait for a session, and results without one.

    share ──► URL/bank.safetensors, URL/clinic.safetensors, … ──► session.load ──► session.save ──► reveal

One file for each computing party, with what it would hold in a session: alone it is uniformly random. A file is in the
core's own layout (safetensors; nothing is ever unpickled): for each tensor its parts as NAME/0, NAME/1, …, and in the
header shapes, dtypes, columns, protocol and a random id that all files of one sharing have, so that files of different
sharings are refused together. Files are written beside their place and moved there whole.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch

from hansa.core.checkpoint import buffers, open_bytes
from hansa.core.errors import ConfigError, CorruptFile, DataError, MissingExtra, NotFound
from hansa.core.tensors import Tensors
from hansa.mpc.protocols import protocol_named
from hansa.mpc.ring import FRACTION_BITS, Prg, decode, encode
from hansa.mpc.ring.random import KEY_BYTES

SUFFIX = ".safetensors"
DTYPES = {str(each).removeprefix("torch."): each for each in (torch.float32, torch.float64, torch.int64, torch.bool)}


@dataclass(frozen=True)
class Entry:
    """What is public of one shared tensor.

    Args:
      shape: of the tensor.
      dtype: its name, as `float32`.
      bits: of the fraction of its code.
      columns: the names of its last dimension; empty if they have none.
    """

    shape: tuple[int, ...]
    dtype: str
    bits: int
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Header:
    """What all files of one sharing have in common.

    Args:
      id: 32 hexadecimal digits, drawn for each sharing.
      protocol: whose shares these are.
      parties: those that hold a file, in the protocol's order.
      tensors: name to what is public of it.
    """

    id: str
    protocol: str
    parties: tuple[str, ...]
    tensors: Mapping[str, Entry]

    def digest(self) -> bytes:
        """32 bytes that are equal where the headers are."""
        facts = {**asdict(self), "tensors": {name: asdict(entry) for name, entry in self.tensors.items()}}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).digest()


@dataclass(frozen=True)
class ShareFile:
    """One party's file.

    Args:
      header: the same in all files of the sharing.
      party: whose it is.
      parts: name to the summands that this party holds, int64.
    """

    header: Header
    party: str
    parts: Mapping[str, tuple[np.ndarray, ...]]

    def __repr__(self) -> str:
        return f"ShareFile(party={self.party!r}, tensors={sorted(self.parts)})"


# -- without a session


def save_shares(
    tensors: Mapping[str, Any], url: str, parties: Sequence[str], *, protocol: str = "aby3",
    columns: Mapping[str, Sequence[str]] | None = None, fraction_bits: int = FRACTION_BITS, random: Prg | None = None,
) -> Header:  # fmt: skip
    """Shares tensors of one owner into a file for each computing party.

    Args:
      tensors: name to a tensor or array: a table, or a model's `state_dict()`. Floats become float32 but for float64.
      url: a folder or any URL of fsspec (`s3://bucket/data`); `{party}` in it is replaced by each party's name.
      parties: the names of those that compute.
      protocol: see `hansa.mpc.Session`; a session with another one refuses the files.
      columns: tensor to the names of its last dimension.
      fraction_bits: of real numbers.
      random: a stream for tests; else one with a key of the operating system.

    Raises:
      ConfigError: more or fewer parties than the protocol has, or columns that do not fit.
      DataError: a number is NaN, infinite or beyond the range.
    """
    names, holdings = tuple(sorted(parties)), protocol_named(protocol).holdings
    if not holdings:
        raise ConfigError(f"'{protocol}' stores no shares: share the data inside a session, or for another protocol.")
    if len(names) != len(holdings):
        raise ConfigError(
            f"'{protocol}' is computed by {len(holdings)} parties, and {len(names)} are given ({', '.join(names)})."
        )
    stream = random or Prg(secrets.token_bytes(KEY_BYTES))
    entries, summands = {}, {}
    for name, given in tensors.items():
        value = torch.as_tensor(given)
        dtype = shared_dtype(value.dtype)
        bits = fraction_bits if dtype.is_floating_point else 0
        named = tuple((columns or {}).get(name, ()))
        if named and (value.dim() == 0 or len(named) != value.shape[-1]):
            raise ConfigError(f"'{name}' of shape {tuple(value.shape)} has no {len(named)} columns: {named}.")
        entries[name] = Entry(tuple(value.shape), str(dtype).removeprefix("torch."), bits, named)
        summands[name] = _split(encode(value, bits, f"'{name}'"), 1 + max(map(max, filter(None, holdings))), stream)
    header = Header(secrets.token_hex(16), protocol, names, entries)
    for party, held in zip(names, holdings, strict=True):
        write_file(ShareFile(header, party, {n: tuple(summands[n][at] for at in held) for n in entries}), url)
    return header


def load_shares(url: str, party: str) -> ShareFile:
    """One party's file.

    Raises:
      NotFound: there is none.
      CorruptFile: it is no file of shares, or was damaged.
      ConfigError: it is another party's.
    """
    file = _read(place_of(url, party))
    if file.party != party:
        raise ConfigError(f"{shown(place_of(url, party))} is the file of '{file.party}', not of '{party}'.")
    return file


def reveal_shares(*urls: str) -> tuple[dict[str, torch.Tensor], Header]:
    """What was shared, from the files of enough parties (of aby3 any two, of the others all that hold shares).

    Args:
      urls: files, or folders whose files are all taken.

    Returns:
      Name to tensor, and the header.

    Raises:
      DataError: files are missing; says whose.
      ConfigError: the files are of different sharings.
      CorruptFile: a file is damaged, or two of them disagree.
    """
    files = [_read(path) for url in urls for path in _files_at(url)]
    if not files:
        raise NotFound(f"there are no files of shares at {', '.join(map(shown, urls))}.")
    header = files[0].header
    for file in files:
        if file.header.digest() != header.digest():
            raise ConfigError(
                f"the files of '{files[0].party}' and '{file.party}' are of different sharings: give those of one."
            )
    holdings = protocol_named(header.protocol).holdings
    count, held = 1 + max(map(max, filter(None, holdings))), {file.party: file for file in files}
    lacking = set(range(count)) - {at for name in held for at in holdings[header.parties.index(name)]}
    if lacking:
        whose = [n for n, has in zip(header.parties, holdings, strict=True) if lacking & set(has)]
        raise DataError(f"the files of {', '.join(held)} are too few: add that of {' or '.join(whose)}.")
    return {name: _sum(name, entry, list(held.values()), holdings) for name, entry in header.tensors.items()}, header


def shared_dtype(given: torch.dtype) -> torch.dtype:
    """What a secret of a value of this dtype has: float32, float64, int64 or bool."""
    if given.is_floating_point:
        return given if given == torch.float64 else torch.float32
    return given if given == torch.bool else torch.int64


def _split(code: torch.Tensor, count: int, random: Prg) -> list[np.ndarray]:
    """Summands of which all but one are drawn."""
    drawn = [random.draw(code.shape) for _ in range(count - 1)]
    return [each.numpy() for each in (*drawn, code - sum(drawn, torch.zeros_like(code)))]


def _sum(name: str, entry: Entry, files: Sequence[ShareFile], holdings: Sequence[Sequence[int]]) -> torch.Tensor:
    found: dict[int, np.ndarray] = {}
    for file in files:
        for at, part in zip(holdings[file.header.parties.index(file.party)], file.parts[name], strict=True):
            if not np.array_equal(found.setdefault(at, part), part):
                raise CorruptFile(f"the file of '{file.party}' disagrees with another about '{name}': one was changed.")
    code = sum((torch.from_numpy(part.copy()) for part in found.values()), torch.zeros(entry.shape, dtype=torch.int64))
    return decode(code, entry.bits, DTYPES[entry.dtype])


def joined(
    given: Sequence[tuple[Mapping[str, torch.Tensor], Mapping[str, tuple[str, ...]]]], join: str
) -> tuple[Any, tuple[str, ...]]:
    """Tables of several owners as one, and its columns' names.

    Args:
      given: for each file its one tensor by name, and the names of its columns.
      join: `rows` or `columns`.
    """
    if join not in ("rows", "columns"):
        raise ConfigError(f"join='{join}': choose 'rows' or 'columns'.")
    for tensors, _ in given:
        if len(tensors) != 1:
            raise ConfigError(f"a file holds {', '.join(tensors)}, and a table is one tensor: load it by itself.")
    tables = [next(iter(tensors.values())) for tensors, _ in given]
    names = [next(iter(columns.values())) for _, columns in given]
    if len(tables) == 1:
        return tables[0], names[0]
    if join == "rows":
        if len(set(names)) > 1 or len({each.shape[1:] for each in tables}) > 1:
            raise ConfigError(f"rows of different columns cannot be joined: {' and '.join(map(str, names))}.")
        return torch.cat(tables), names[0]
    every = tuple(name for each in names for name in each)
    if len({len(each) for each in tables}) > 1 or any(each.dim() != 2 for each in tables):
        raise ConfigError(f"columns of {[tuple(each.shape) for each in tables]} cannot be joined: rows must match.")
    if len(set(every)) < len(every):
        raise ConfigError(f"columns occur twice among {', '.join(every)}: rename one before it is shared.")
    return torch.cat(tables, 1), every


# -- files


def place_of(url: str, party: str) -> str:
    """Where one party's file is."""
    place = url.replace("{party}", party)
    return place if place.endswith(SUFFIX) else f"{place.rstrip('/')}/{party}{SUFFIX}"


def shown(url: str) -> str:
    """The URL without what may be a secret: user, password, query."""
    if "://" not in url:
        return url
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def write_file(file: ShareFile, url: str) -> None:
    """Writes one party's file: it is there whole, or what was there before; on this machine its owner's alone."""
    facts = {
        "id": file.header.id, "protocol": file.header.protocol, "parties": file.header.parties, "party": file.party,
        "tensors": {name: asdict(entry) for name, entry in file.header.tensors.items()},
    }  # fmt: skip
    arrays = {f"{name}/{at}": part for name, parts in file.parts.items() for at, part in enumerate(parts)}
    place = place_of(url, file.party)
    files, path = _system(place)
    beside = f"{path}.{secrets.token_hex(4)}.part"
    try:
        files.makedirs(path.rpartition("/")[0], exist_ok=True)
        try:
            with files.open(beside, "wb") as out:
                if files.protocol == ("file", "local"):  # before a byte of it is there
                    os.chmod(beside, 0o600)
                for piece in buffers(Tensors(arrays), {"hansa shares": json.dumps(facts)}):
                    out.write(piece)
            files.mv(beside, path)
        except BaseException:
            if files.exists(beside):
                files.rm(beside)
            raise
    except OSError as error:
        raise ConfigError(f"{shown(place)} cannot be written: {error.strerror or type(error).__name__}.") from None


def _read(place: str) -> ShareFile:
    files, path = _system(place)
    try:
        tensors, metadata = open_bytes(files.cat_file(path))
    except FileNotFoundError:
        raise NotFound(f"there is no file of shares {shown(place)}: make it with `hansa mpc share`.") from None
    except OSError as error:
        raise CorruptFile(f"{shown(place)} cannot be read: {error.strerror or type(error).__name__}.") from None
    except CorruptFile as error:
        raise CorruptFile(f"{shown(place)}: {error}") from None
    try:
        return _understood(tensors, json.loads(metadata["hansa shares"]))
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError, ConfigError) as error:
        raise CorruptFile(f"{shown(place)} is no file of shares ({error}).") from None


def _understood(tensors: Tensors, facts: Any) -> ShareFile:
    """The file, once everything in it fits; any of several errors if not."""
    entries = {}
    for name, each in facts["tensors"].items():
        entry = entries[name] = Entry(tuple(each["shape"]), each["dtype"], each["bits"], tuple(each["columns"]))
        if entry.dtype not in DTYPES or type(entry.bits) is not int or not 0 <= entry.bits <= 46:
            raise ValueError(f"'{name}' has dtype {entry.dtype} and {entry.bits} bits")
        if entry.columns and len(entry.columns) != entry.shape[-1]:
            raise ValueError(f"'{name}' has {len(entry.columns)} names for {entry.shape[-1]} columns")
    header = Header(str(facts["id"]), facts["protocol"], tuple(facts["parties"]), entries)
    holdings = protocol_named(header.protocol).holdings
    if len(header.parties) != len(holdings):
        raise ValueError(f"'{header.protocol}' has {len(holdings)} parties, not {len(header.parties)}")
    held = holdings[header.parties.index(facts["party"])]
    parts = {name: tuple(np.asarray(tensors[f"{name}/{at}"]) for at in range(len(held))) for name in entries}
    if len(tensors) != len(held) * len(entries):
        raise ValueError("it holds more than its header says")
    for name, entry in entries.items():
        if any(part.shape != entry.shape or part.dtype != np.int64 for part in parts[name]):
            raise ValueError(f"'{name}' is not of the shape that the header says")
    return ShareFile(header, facts["party"], parts)


def _files_at(url: str) -> list[str]:
    """The files that a URL names, or that lie in the folder it names."""
    if url.endswith(SUFFIX):
        return [url]
    files, path = _system(url)
    return sorted(files.unstrip_protocol(each) for each in files.glob(f"{path.rstrip('/')}/*{SUFFIX}"))


def _system(url: str) -> tuple[Any, str]:
    """What opens files there, and the path in it."""
    try:
        import fsspec
    except ImportError:
        raise MissingExtra("a file of shares", "fsspec", "data") from None
    try:
        files, path = fsspec.core.url_to_fs(url if "://" in url else str(Path(url).absolute()))
    except (ValueError, ImportError) as error:
        raise ConfigError(f"{shown(url)} is no place for files: {error}.") from None
    return files, path
