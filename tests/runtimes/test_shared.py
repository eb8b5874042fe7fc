"""Files that are written over keep what is read of them, and hold nothing else."""

import gc
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings, strategies as st

from hansa.core.tensors import Tensors
from hansa.runtimes.shared import MAPPED_BYTES, Spares, borrow_tensors, read_tensors, write_tensors

LARGE = MAPPED_BYTES // 8


def some(size: int, value: float = 1.0) -> Tensors:
    return Tensors({"w": np.full(size, value), "small": np.array([value], np.float32)})


@given(sizes=st.lists(st.sampled_from([0, 1, 7, LARGE, LARGE + 9]), min_size=1, max_size=8), held=st.booleans())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_over_a_spare_file_is_read_as_written(tmp_path: Path, sizes: list[int], held: bool) -> None:
    spares, seen = Spares(2, 64 << 20), list[tuple[Tensors, Tensors]]()
    for i, size in enumerate(sizes):
        written, spare = some(size, i), spares.pop()
        path = write_tensors(written, str(tmp_path), spare.path if spare is not None else "")
        assert read_tensors(path) == written
        seen.append((written, borrow_tensors(path, spare.mapping if spare is not None else None, spares.add)))
        assert all(one == other for one, other in seen), "what is still read is as it was"
        del seen[: len(seen) - 3 * held]


def test_a_file_comes_back_when_the_last_view_of_it_is_gone(tmp_path: Path) -> None:
    spares = Spares(2, 64 << 20)
    path = write_tensors(some(LARGE), str(tmp_path))
    read = borrow_tensors(path, None, spares.add)
    view = read["w"][3:5].view(np.uint8)
    del read
    gc.collect()
    assert spares.pop() is None, "a view of it is left"
    del view
    gc.collect()
    spare = spares.pop()
    assert spare is not None
    after = write_tensors(some(LARGE, 2.0), str(tmp_path), spare.path)
    assert [file.name for file in tmp_path.iterdir()] == [Path(after).name]
    assert borrow_tensors(after, spare.mapping, spares.add) == some(LARGE, 2.0)


def test_spares_are_few_and_the_rest_is_deleted(tmp_path: Path) -> None:
    spares = Spares(3, 2 * MAPPED_BYTES + 2000)
    for size in (1, 1, LARGE, LARGE, 1, 1):
        spares.add(write_tensors(some(size), str(tmp_path)))
    assert len(list(tmp_path.iterdir())) == 3, "the count is kept to"
    large = Spares(9, 2 * MAPPED_BYTES + 2000)
    (folder := tmp_path / "large").mkdir()
    for _ in range(4):
        large.add(write_tensors(some(LARGE), str(folder)))
    assert len(list(folder.iterdir())) == 2, "so is the size"
    spares.add(str(tmp_path / "gone"))  # with its folder, when a run is over
