"""`pack`: any clients, written once to a folder from which a million of them are opened at the cost of one.

It reads clients in their order, or a table that is in another order piece by piece, so that memory does not grow with
the data. The folder appears whole or not at all. What it holds is drawn in `mapped.py`.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hansa.core.data import Clients, Dataset
from hansa.core.errors import DataError
from hansa.data.mapped import FORMAT, Population, check_sorted
from hansa.data.population import NumberedIds, Partition

ROWS_AT_ONCE = 1 << 16


def pack(clients: Clients, folder: str | Path) -> Population:
    """Writes clients to a folder of .npy columns in which the rows of a client lie together.

    Args:
      clients: of Datasets with equal columns; a `Population` over a Parquet or Arrow file is the usual one.
      folder: must not exist.

    Returns:
      The population in the folder: equal ids, and equal rows in equal order.

    Raises:
      DataError: the folder exists, there are no rows, or a column differs in type or shape between two clients.
    """
    target = os.path.abspath(folder)
    if os.path.exists(target):
        raise DataError(f"'{target}' exists: give the name of a new folder, or remove it.")
    os.makedirs(os.path.dirname(target), exist_ok=True)
    working = tempfile.mkdtemp(prefix=f".{os.path.basename(target)}-", dir=os.path.dirname(target))
    try:
        if isinstance(clients, Population) and clients._layout.order is not None:
            files, offsets = _scatter(clients, working)
        else:
            files, offsets = _stream(clients, working)
        np.save(os.path.join(working, "offsets.npy"), offsets)
        kind = _write_ids(clients.ids, working)
        index = {**FORMAT, "clients": len(offsets) - 1, "ids": kind, "columns": files}
        Path(working, "index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
        os.chmod(working, 0o755)
        os.rename(working, target)
    except BaseException:
        shutil.rmtree(working, ignore_errors=True)
        raise
    return Population(target)


class _Column:
    """An .npy file that grows at its end; the header, whose length NumPy keeps free for it, is set at last."""

    def __init__(self, path: str, like: np.ndarray) -> None:
        self.dtype, self.shape, self.rows = like.dtype, like.shape[1:], 0
        self._file = open(path, "wb")  # noqa: SIM115
        self._header()

    def append(self, values: np.ndarray) -> None:
        np.ascontiguousarray(values).tofile(self._file)
        self.rows += len(values)

    def close(self) -> None:
        self._file.seek(0)
        self._header()
        self._file.close()

    def _header(self) -> None:
        described: Any = np.lib.format.dtype_to_descr(self.dtype)
        header = {"descr": described, "fortran_order": False, "shape": (self.rows, *self.shape)}
        np.lib.format.write_array_header_1_0(self._file, header)


def _stream(clients: Clients, folder: str) -> tuple[dict[str, str], np.ndarray]:
    columns: dict[str, _Column] = {}
    sizes: list[int] | np.ndarray = []
    files: dict[str, str] = {}
    try:
        for client, data in _datasets(clients):
            if not columns:
                files = _file_names(data)
                columns = {name: _Column(os.path.join(folder, files[name]), data[name]) for name in data}
            _check_like(columns, data, client)
            for name, column in columns.items():
                column.append(data[name])
            if isinstance(sizes, list):
                sizes.append(len(data))
    finally:
        for column in columns.values():
            column.close()
    if isinstance(clients, Partition):
        sizes = clients.sizes()
    if not sum(column.rows for column in columns.values()):
        raise DataError("the clients have no rows, so there is nothing to pack: give at least one example.")
    return files, np.concatenate([[0], np.cumsum(np.asarray(sizes, np.int64))])


def _datasets(clients: Clients) -> Iterator[tuple[str, Dataset]]:
    """Everything in the order of the clients; of a partition in large slices, whoever's they are."""
    if isinstance(clients, Partition):
        rows = clients.all_rows()
        for start in range(0, len(rows), ROWS_AT_ONCE):
            yield f"row {start}", clients.dataset.take(rows[start : start + ROWS_AT_ONCE])
        return
    for client in clients.ids:
        data = clients.open(client)
        if not isinstance(data, Dataset):
            raise DataError(f"the data of '{client}' is a {type(data).__name__}: pack takes clients of Datasets.")
        yield client, data


def _check_like(columns: dict[str, _Column], data: Dataset, client: str) -> None:
    if set(columns) != set(data):
        raise DataError(f"'{client}' has columns {sorted(data)}, those before it {sorted(columns)}: give all the same.")
    for name, column in columns.items():
        given = data[name]
        if given.dtype != column.dtype or given.shape[1:] != column.shape or given.dtype.hasobject:
            raise DataError(
                f"column '{name}' of '{client}' is {given.dtype}{list(given.shape[1:])}, before it "
                f"{column.dtype}{list(column.shape)}: give all clients one type of fixed width."
            )


def _scatter(population: Population, folder: str) -> tuple[dict[str, str], np.ndarray]:
    """Reads the pieces in the order of the file and puts every row where it belongs."""
    table, _, offsets, order, names = population._layout
    assert order is not None
    place = np.empty_like(order)
    place[order] = np.arange(len(order), dtype=order.dtype)
    out: dict[str, np.ndarray] = {}
    files: dict[str, str] = {}
    for number in range(len(table.bounds) - 1):
        found = Dataset(**population._named(table.piece(number, names)))
        if not out:
            files = _file_names(found)
            out = {
                name: np.lib.format.open_memmap(
                    os.path.join(folder, files[name]), "w+", found[name].dtype, (len(table), *found[name].shape[1:])
                )
                for name in found
            }
        rows = place[table.bounds[number] : table.bounds[number + 1]]
        for name, column in out.items():
            if found[name].dtype != column.dtype:
                raise DataError(f"column '{name}' of '{table.path}' is text of varying width: leave it out.")
            column[rows] = found[name]
    return files, offsets


def _file_names(data: Dataset) -> dict[str, str]:
    return {name: f"column-{number}.npy" for number, name in enumerate(data)}


def _write_ids(ids: Sequence[str], folder: str) -> str:
    if isinstance(ids, NumberedIds):
        return "numbered"
    check_sorted(ids)
    lengths = np.empty(len(ids), np.int64)
    text = _Column(os.path.join(folder, "ids.npy"), np.empty(0, np.uint8))
    for start in range(0, len(ids), ROWS_AT_ONCE):
        raw = [client.encode() for client in ids[start : start + ROWS_AT_ONCE]]
        lengths[start : start + len(raw)] = [len(client) for client in raw]
        text.append(np.frombuffer(b"".join(raw), np.uint8))
    text.close()
    if not lengths.all():
        raise DataError("an id is empty: every client needs a name.")
    np.save(os.path.join(folder, "id_offsets.npy"), np.concatenate([[0], np.cumsum(lengths)]))
    return "text"
