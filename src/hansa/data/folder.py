"""One file for each client: a folder of tables, each read when its client is opened.

people/ann.csv  people/bob.csv  …        Folder("people", "*.csv", target="outcome", features=("age",))
"""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from hansa.core.data import Clients, Dataset
from hansa.core.errors import DataError
from hansa.data.files import from_csv, from_npz, from_parquet
from hansa.data.ids import known_place

ENDINGS = (".csv", ".parquet", ".npz")


@dataclass(frozen=True)
class Folder(Clients):
    """The files of a folder, as clients named after them without their ending.

    A frozen dataclass of simple values, so that worker processes read the files themselves.

    Args:
      path: the folder.
      pattern: which files, as `*.csv`; all that match end in .csv, .parquet or .npz. Folders inside are left out.
      target, features, classes: of tables, as in `from_csv`.

    Raises:
      DataError: no file matches, one has another ending, two have one name, or a file cannot be read.
      NotFound: an unknown client.
    """

    path: str
    pattern: str = "*"
    _: KW_ONLY
    target: str | None = None
    features: tuple[str, ...] | None = None
    classes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", str(Path(self.path).absolute()))
        for name in ("features", "classes"):
            given = getattr(self, name)
            object.__setattr__(self, name, None if given is None else tuple(given))
        self._files  # noqa: B018  faults show when it is made, not when the first client is opened

    @property
    def ids(self) -> Sequence[str]:
        return self._files[0]

    def open(self, client: str) -> Dataset:
        """The examples in one client's file."""
        ids, names = self._files
        file = str(Path(self.path, names[known_place(ids, client)]))
        if file.endswith(".npz"):
            return from_npz(file)
        return (from_csv if file.endswith(".csv") else from_parquet)(file, self.target, self.features, self.classes)

    def __repr__(self) -> str:
        return f"Folder({len(self)} clients in '{self.path}')"

    def __getstate__(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}  # not the list of files

    @cached_property
    def _files(self) -> tuple[list[str], list[str]]:
        """Ids in their order, and the file of each."""
        files = [file for file in Path(self.path).glob(self.pattern) if file.is_file()]
        if not files:
            raise DataError(f"no file in '{self.path}' matches '{self.pattern}': check the folder and the pattern.")
        found = {file.stem: file.name for file in files}
        for file in files:
            if file.suffix not in ENDINGS or found[file.stem] != file.name:
                why = "has another file's name" if file.suffix in ENDINGS else f"ends in none of {', '.join(ENDINGS)}"
                raise DataError(f"'{file.name}' in '{self.path}' {why}: give a pattern that leaves it out.")
        ids = sorted(found)
        return ids, [found[client] for client in ids]
