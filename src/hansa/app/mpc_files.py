"""`hansa mpc share` and `hansa mpc reveal`: tables and models into files of shares, and back, without a session."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hansa.app.folder import check_file
from hansa.app.terminal import emit, hint, say
from hansa.core.checkpoint import dump, open_bytes
from hansa.core.errors import ConfigError, DataError, NotFound
from hansa.core.tensors import Tensors
from hansa.data.files import from_csv, from_npz
from hansa.mpc.files import Header, place_of, reveal_shares, save_shares, shown
from hansa.mpc.session import computing_parties
from hansa.runtimes.mesh import Parties

TABLE = "table"


def share(data: Path, parties: Path, out: str, protocol: str, columns: Sequence[str]) -> None:
    """`hansa mpc share`."""
    if protocol == "plain":
        raise ConfigError("--protocol plain: its one file would hold the data itself; choose aby3, pond or two_party.")
    known = computing_parties(Parties.read(parties), protocol)
    tensors, names = _read(data, columns)
    header = save_shares(tensors, out, known.names, protocol=protocol, columns={TABLE: names} if names else None)
    places = [shown(place_of(out, party)) for party in header.parties]
    emit("shared", id=header.id, protocol=protocol, files=places, tensors=_shapes(header))
    for party, place in zip(header.parties, places, strict=True):
        say(f"{place}  for {party}")
    if "{party}" not in out:
        hint("whoever reads all of these files reads the data: give each party its own, and no other")


def reveal(urls: Sequence[str], out: Path | None) -> None:
    """`hansa mpc reveal`."""
    check_file(out, "--out")
    opened, header = reveal_shares(*urls)
    tensors = {name: value.numpy() for name, value in opened.items()}
    emit("revealed", id=header.id, protocol=header.protocol, tensors=_shapes(header), out=out and str(out))
    if out is None:
        for name, value in tensors.items():
            named = header.tensors[name].columns
            say(_csv(value, named).rstrip() if named else f"{name}, shape {value.shape}:\n{value}")
    elif out.suffix == ".csv":
        if len(tensors) != 1:
            raise ConfigError(f"--out {out}: there are {len(tensors)} tensors; a .safetensors file takes them all.")
        ((name, value),) = tensors.items()
        out.write_text(_csv(value, header.tensors[name].columns), encoding="utf-8")
    elif out.suffix == ".safetensors":
        out.write_bytes(dump(Tensors(tensors)))
    else:
        raise ConfigError(f"--out {out}: end its name with .csv or .safetensors.")
    if out is not None:
        say(f"{', '.join(tensors)} written to {out}")


def _shapes(header: Header) -> dict[str, list[int]]:
    return {name: list(entry.shape) for name, entry in header.tensors.items()}


def _read(data: Path, columns: Sequence[str]) -> tuple[Mapping[str, np.ndarray], Sequence[str]]:
    """The tensors of a file, and the names of a table's columns."""
    if not data.is_file():
        raise NotFound(f"there is no file '{data}': check the path.")
    if data.suffix == ".csv":
        wanted = list(columns) or _first_line(data)
        return {TABLE: from_csv(str(data), target=wanted[0], features=wanted)["x"]}, wanted
    if columns:
        raise ConfigError(f"--columns are those of a table: '{data}' is no .csv file.")
    if data.suffix == ".npz":
        return dict(from_npz(str(data)).columns), ()
    if data.suffix == ".safetensors":
        return {name: np.array(value) for name, value in open_bytes(data.read_bytes())[0].items()}, ()
    raise ConfigError(f"'{data}': give a table (.csv), arrays (.npz) or a model (.safetensors).")


def _first_line(data: Path) -> list[str]:
    try:
        with data.open(encoding="utf-8-sig", newline="") as lines:
            names = [cell.strip() for cell in next(csv.reader(lines), [])]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"'{data}' is not a CSV file in UTF-8: {type(error).__name__}.") from None
    if not names:
        raise DataError(f"'{data}' is empty: its first line names the columns.")
    return names


def _csv(value: np.ndarray, names: Sequence[str]) -> str:
    if value.ndim > 2:
        raise ConfigError(f"a tensor of shape {value.shape} is no table: write it to a .safetensors file.")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    if names:
        writer.writerow(names)
    rows = value.reshape(len(value), -1) if value.ndim else value.reshape(1, 1)
    writer.writerows([f"{cell:.7g}" if value.dtype.kind == "f" else cell for cell in row] for row in rows.tolist())
    return out.getvalue()
