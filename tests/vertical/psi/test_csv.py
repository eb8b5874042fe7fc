"""Aligned tables as files: in the common order whatever the size, and refused once they changed."""

from pathlib import Path

import numpy as np
import pytest

from hansa.core.errors import ConfigError, CorruptFile, DataError, NotFound, StateMismatch
from hansa.vertical.psi import files
from hansa.vertical.psi.files import CsvTable, read_aligned, write_aligned
from hansa.vertical.psi.intersect import Intersection
from hansa.vertical.psi.state import State
from hansa.vertical.psi.tags import Match


def found(*buckets: list[int]) -> Intersection:
    state = State(None)
    for at, rows in enumerate(buckets):
        state.keep(at, Match(np.array(rows, np.int64), np.empty((len(rows), 10), np.uint8)))
    return Intersection(sum(map(len, buckets)), bytes(range(32)), len(buckets), state)


def made(path: Path, rows: int = 9) -> CsvTable:
    lines = [f'p{at},{at / 2},"two\nlines, {at}",{"" if at == 4 else at}' for at in range(rows)]
    path.write_text("\ufeffid,half,note,gap\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return CsvTable.open(path)


@pytest.mark.parametrize("small", [False, True])
def test_rows_are_written_in_the_common_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: bool) -> None:
    if small:
        monkeypatch.setattr(files, "_BLOCK", 2)
        monkeypatch.setattr(files, "_RANGE", 2)
        monkeypatch.setattr(files, "_PIECE", 2)
    table, out = made(tmp_path / "t.csv"), tmp_path / "out.csv"
    assert [key for piece in table.keys(["id"]) for key in piece["id"]] == [f"p{at}" for at in range(9)]
    write_aligned(table, found([7, 0], [], [4, 8, 1]), out, owner="bank", key=["id"])
    aligned = read_aligned(out)
    assert (
        aligned.owner == "bank" and aligned.names == ("half", "note", "gap") and aligned.alignment == bytes(range(32))
    )
    assert aligned["half"].tolist() == [3.5, 0.0, 2.0, 4.0, 0.5]
    assert aligned["note"][0] == "two\nlines, 7" and np.isnan(aligned["gap"][2])
    assert read_aligned(str(out), with_key=True)["id"].tolist() == ["p7", "p0", "p4", "p8", "p1"]
    assert {path.name for path in tmp_path.iterdir()} == {"t.csv", "out.csv", "out.csv.alignment"}


def test_a_file_that_changed_since_is_refused(tmp_path: Path) -> None:
    table, out = made(tmp_path / "t.csv"), tmp_path / "out.csv"
    write_aligned(table, found([2, 1]), out, owner="bank", key=["id"])
    out.write_text(out.read_text().replace("p2", "p3"))
    with pytest.raises(StateMismatch, match=r"out.csv changed since it was aligned"):
        read_aligned(out)
    (tmp_path / "out.csv.alignment").unlink()
    with pytest.raises(NotFound, match="written with .* by `hansa psi`"):
        read_aligned(out)
    (tmp_path / "out.csv.alignment").mkdir()
    with pytest.raises(CorruptFile, match="out.csv.alignment cannot be read"):
        read_aligned(out)
    with pytest.raises(NotFound, match="none.csv does not exist: give the path of a CSV file"):
        read_aligned(str(tmp_path / "none.csv"))
    with pytest.raises(DataError, match="cannot be read as CSV"):
        read_aligned(str(tmp_path))


def test_bad_files_are_refused_by_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    for text, message in [
        ("", "is empty: it needs a header"),
        ("a,a\n", r"columns \['a'\] twice"),
        ("a,b\n1,2\n3\n", "line 3 of .* has 1 values"),
        ('a,b\n1,"2\n', "cannot be read as CSV"),
    ]:
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            list(CsvTable.open(path).rows())
    path.write_bytes(b"a\n\xff\xfe\n")
    with pytest.raises(DataError, match="UTF-8"):
        list(CsvTable.open(path).rows())
    path.write_text("a\n1\n")
    with pytest.raises(ConfigError, match=r"no columns \['id'\] for the key: it has a"):
        list(CsvTable.open(path).keys(["id"]))
    with pytest.raises(NotFound, match="does not exist"):
        CsvTable.open(tmp_path / "none.csv")
