import subprocess
import sys

import numpy as np
import pytest

from hansa.core.errors import DataError
from hansa.data import from_csv, from_npz, from_parquet, load

TABLE = "age,weight,outcome\n61,70.5,1\n44,82,0\n"


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "patients.csv"
    path.write_text(TABLE)
    return path


def written(tmp_path, text):
    path = tmp_path / "table.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_csv_file_gives_float_features_and_whole_targets(table):
    data = from_csv(str(table), target="outcome")
    assert data["x"].tolist() == [[61, 70.5], [44, 82]]
    assert (data["x"].dtype, data["y"].dtype) == (np.float32, np.int64)
    assert data["y"].tolist() == [1, 0]


def test_features_come_in_the_order_asked_for(table):
    assert from_csv(str(table), "outcome", ["weight", "age"])["x"].tolist() == [[70.5, 61], [82, 44]]


def test_targets_that_are_not_whole_stay_floats(tmp_path):
    data = from_csv(written(tmp_path, "a,y\n1,0.5\n2,1\n"))
    assert data["y"].dtype == np.float32


def test_classes_turn_text_into_codes_that_agree_between_parties(tmp_path):
    path = written(tmp_path, 'a,label\n1, ill\n2,"well"\n')
    assert from_csv(path, classes=["well", "ill", "unknown"])["y"].tolist() == [1, 0]


def test_a_file_without_names_takes_them_as_an_argument(tmp_path):
    path = written(tmp_path, "1;2\n3;4\n\n")
    assert from_csv(path, target="b", names=["a", "b"], delimiter=";")["x"].tolist() == [[1], [3]]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (TABLE, {}, r"no column named y, target, label among \['age'.*target='...'.*#target="),
        (TABLE, {"target": "death"}, r"no column 'death': its columns are \['age', 'weight', 'outcome'\]"),
        (TABLE, {"target": "outcome", "features": ["height"]}, "no column 'height'"),
        ("y\n1\n", {}, "no column of features beside the target 'y'"),
        ("a,y\n", {}, "no rows below its column names"),
        ("", {}, "no rows below its column names"),
        ("a,a,y\n1,2,3\n", {}, "names a column twice"),
        ("a,y\n1,2\n3\n", {}, "row 2 of .* has 1 cells for 2 columns"),
        ("a,y\n1,2\n,3\n", {}, "row 2 of column 'a' .* is empty: fill or drop it"),
        ("a,y\n1,2\nsecret,3\n", {}, "row 2 of column 'a' .* is not a number: leave it out of features="),
        ("a,y\n1,2\n3,nan\n", {}, "row 2 of column 'y' .* is not a finite number"),
        ("a,y\n1,secret\n", {}, "row 1 of column 'y' .* is not a number: .*classes="),
        ("a,y\n1,secret\n", {"classes": ["x"]}, r"row 1 of column 'y' .* is none of classes=\['x'\]"),
    ],
)
def test_a_bad_table_is_refused_by_row_and_column_without_its_content(tmp_path, text, options, message):
    with pytest.raises(DataError, match=message) as refusal:
        from_csv(written(tmp_path, text), **options)
    assert "secret" not in str(refusal.value)


def test_bytes_that_are_not_text_are_refused(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(b"\xff\xfe\x00a,y\n")
    with pytest.raises(DataError, match="not a CSV file in UTF-8"):
        from_csv(str(path))


def test_parquet_gives_what_csv_gives(tmp_path, table):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    path = tmp_path / "patients.parquet"
    parquet.write_table(pyarrow.table({"age": [61, 44], "weight": [70.5, 82], "outcome": [1, 0]}), path)
    ours, theirs = from_parquet(str(path), target="outcome"), from_csv(str(table), target="outcome")
    assert ours["x"].tolist() == theirs["x"].tolist()
    assert ours["y"].tolist() == theirs["y"].tolist()
    assert load(f"{path}#target=outcome&features=age")["x"].tolist() == [[61], [44]]
    with pytest.raises(DataError, match="no column 'death'"):
        from_parquet(str(path), target="death")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="is not a Parquet file, or is damaged"):
        from_parquet(str(path), target="outcome")


def test_empty_cells_of_parquet_are_counted_not_filled(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    path = tmp_path / "patients.parquet"
    parquet.write_table(pyarrow.table({"age": [61, None], "y": [1, 0]}), path)
    with pytest.raises(DataError, match="column 'age' .* has 1 empty cells"):
        load(str(path))


def test_npz_gives_its_arrays_and_never_objects(tmp_path):
    path = tmp_path / "arrays.npz"
    np.savez(path, x=np.zeros((2, 3)), y=[0, 1])
    assert load(str(path))["x"].shape == (2, 3)
    np.savez(path, x=np.array([{}, {}], dtype=object))
    with pytest.raises(DataError, match="not an .npz file of plain arrays"):
        from_npz(str(path))
    path.write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(DataError, match="not an .npz file of plain arrays"):
        from_npz(str(path))


def test_urls_are_read_through_fsspec(table):
    fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
    with fsspec.open("memory://ward/patients.csv", "w") as file:
        file.write(TABLE)
    for url in ("memory://ward/patients.csv", f"file://{table}"):
        assert load(f"{url}#target=outcome")["y"].tolist() == [1, 0]
    with pytest.raises(DataError, match="there is no file 'memory://ward/nobody.csv'"):
        load("memory://ward/nobody.csv")


def test_a_message_never_holds_the_password_of_a_url():
    pytest.importorskip("fsspec", reason="fsspec is not installed")
    with pytest.raises(DataError) as refusal:
        load("nosuch://me:password@host/table.csv?token=password#target=y")
    assert "nosuch://host/table.csv" in str(refusal.value)
    assert "password" not in str(refusal.value)


def test_a_function_is_called_by_file_or_by_module(tmp_path, monkeypatch):
    (tmp_path / "neighbour.py").write_text("ROWS = [1, 2, 3]\n")
    path = tmp_path / "mydata.py"
    path.write_text(
        "from neighbour import ROWS\n"
        "class Ward:\n    @staticmethod\n    def load(): return ROWS\n"
        "def load(): return ROWS\ndef nothing(): return None\nnumber = 3\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert load(f"{path}:load") == load(f"{path}:Ward.load") == [1, 2, 3]
    monkeypatch.chdir(tmp_path)
    assert load("mydata:load") == [1, 2, 3]
    for spec, message in {
        f"{path}:lod": r"no function 'lod': it has \['Ward', 'load', 'nothing'\]",
        f"{path}:number": "is a int, not a function",
        f"{path}:nothing": "nothing returned NoneType, which has no length",
        f"{tmp_path}/other.py:load": "there is no file .*other.py",
        "no_such_package.data:load": "module 'no_such_package.data' cannot be imported",
    }.items():
        with pytest.raises(DataError, match=message):
            load(spec)


@pytest.mark.parametrize("spec", ["", "notes.txt", "mydata", "csv", "postgresql://host/table", "s3://bucket/file"])
def test_a_form_that_is_not_known_lists_those_that_are(spec):
    with pytest.raises(DataError, match="give module.py:function, package.module:function, or a path or URL that ends"):
        load(spec)


def test_a_missing_file_is_one_clear_error(tmp_path):
    for name in ("no.csv", "no.npz", "no.parquet"):
        with pytest.raises(DataError, match=f"there is no file '.*{name}': check the path"):
            load(str(tmp_path / name))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match="cannot open .*folder.csv"):
        load(str(tmp_path / "folder.csv"))


def test_an_unknown_option_is_refused(table):
    with pytest.raises(DataError, match="after # come target=, features= and classes="):
        load(f"{table}#goal=outcome")


def test_the_room_and_a_plain_csv_path_need_numpy_alone(table):
    code = (
        "import sys; from hansa.data import load, partition, IID\n"
        f"partition(load({f'{table}#target=outcome'!r}), IID(), clients=2)\n"
        "third = {'pandas', 'pyarrow', 'fsspec', 'sklearn', 'matplotlib', 'torch', 'scipy'} & set(sys.modules)\n"
        "assert not third, third"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
