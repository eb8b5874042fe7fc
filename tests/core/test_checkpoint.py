"""Files of tensors: bit for bit there and back, readable by the safetensors library, and no garbage gets through."""

import json
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from hansa.core.checkpoint import Checkpoint, Stored, dump, open_bytes, open_stored
from hansa.core.errors import CorruptFile
from hansa.core.ledger import Entry, Event, Ledger
from hansa.core.tensors import Tensors

DTYPES = [
    "float64",
    "float32",
    "float16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint64",
    "uint32",
    "uint16",
    "uint8",
    "bool",
]
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=4))
)
TREES = st.dictionaries(st.text(max_size=8), ARRAYS, max_size=5).map(Tensors)
EVENTS = st.builds(
    Event, mechanism=st.sampled_from(["gaussian", "ü"]), noise_multiplier=st.floats(0, 9), rate=st.floats(0.1, 1)
)
LEDGERS = st.lists(st.builds(Entry, st.integers(0, 99), st.integers(0, 9), EVENTS), max_size=6).map(
    lambda entries: Ledger(tuple(entries))
)
JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=3) | st.floats(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
)
CHECKPOINTS = st.builds(
    Checkpoint, run=st.text(), fingerprint=st.text(), round=st.integers(0, 2**40), state=TREES, pipeline=TREES,
    memories=st.dictionaries(st.text(), st.text(), max_size=3), plan=st.text(), ledger=LEDGERS,
    best=st.none() | st.tuples(st.integers(0, 99), st.floats(allow_nan=False)),
)  # fmt: skip


@settings(deadline=None)
@given(CHECKPOINTS)
def test_a_checkpoint_comes_back_bit_for_bit(checkpoint: Checkpoint) -> None:
    assert Checkpoint.load(checkpoint.dump()) == checkpoint


@settings(deadline=None)
@given(TREES)
def test_lazy_and_whole_reading_agree(tensors: Tensors) -> None:
    data = dump(tensors)
    lazy, _ = open_stored(lambda offset, length: data[offset : offset + length], len(data))
    assert lazy == open_bytes(data)[0] == tensors
    for name in tensors:
        pieces = [piece for _, piece in lazy.blocks(name)]
        flat = np.concatenate(pieces) if pieces else np.zeros(0)
        assert flat.tobytes() == np.ascontiguousarray(tensors[name]).tobytes()


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=8).filter(lambda s: s != "__metadata__"), ARRAYS, max_size=4
    )
)
def test_the_safetensors_library_reads_ours_and_we_read_theirs(arrays: dict[str, np.ndarray]) -> None:
    theirs = safetensors.numpy.load(dump(Tensors(arrays)))
    assert Tensors(theirs) == Tensors(arrays)
    contiguous = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}
    assert open_bytes(safetensors.numpy.save(contiguous, {"by": "them"})) == (Tensors(arrays), {"by": "them"})


def test_arrays_that_are_not_contiguous_are_written_as_they_look() -> None:
    array = np.arange(6, dtype="int32").reshape(2, 3).T
    assert open_bytes(dump(Tensors({"w": array})))[0]["w"].tolist() == array.tolist()


def test_what_was_read_cannot_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        open_bytes(dump(Tensors({"w": [1.0]})))[0]["w"][0] = 2.0


def file(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(begin: Any, end: Any, shape: Any = (1,), dtype: Any = "F32", **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end], **more}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"0 bytes are too few"),
        (b"1234567", r"7 bytes are too few"),
        (file({}, length=1 << 62), r"a header of \d+ bytes does not fit"),
        (file(b"\x00" * 100, length=99 << 20), r"does not fit into 108 bytes"),
        (file(b"{"), "not JSON"),
        (file(b"\xff\xfe"), "not JSON"),
        (file(b"[" * 100_000), "not JSON"),
        (file(b"[]"), "not a JSON object"),
        (file(b'{"a": {}, "a": {}}'), "a name occurs twice"),
        (file({"__metadata__": {"a": 1}}), "not a mapping of strings"),
        (file({"__metadata__": []}), "not a mapping of strings"),
        (file({"w": None}), r"entry for 'w' is unusable"),
        (file({"w": entry(0, 4, more=1)}, b"1234"), "unknown keys"),
        (file({"w": entry(0, 4, dtype="F128")}, b"1234"), "unusable: KeyError"),
        (file({"w": entry(0, 4, dtype=[])}, b"1234"), "unusable"),
        (file({"w": entry(0, 4, shape=[-1])}, b"1234"), "natural numbers"),
        (file({"w": entry(0, 4, shape=[True])}, b"1234"), "natural numbers"),
        (file({"w": entry(0, 4, shape=[1.0])}, b"1234"), "natural numbers"),
        (file({"w": entry(0, 0, shape=[0, 1 << 61, 1 << 61])}), "more axes or elements"),
        (file({"w": entry(0, 4, shape=[1] * 70)}, b"1234"), "more axes or elements"),
        (file({"w": entry(0, 4, shape=[2])}, b"1234"), r"'w' claims the bytes 0:4"),
        (file({"w": entry(4, 8)}, b"12345678"), r"'w' claims the bytes 4:8"),
        (file({"a": entry(0, 4), "b": entry(2, 6)}, b"123456"), r"'b' claims the bytes 2:6"),
        (file({"a": entry(0, 4), "b": entry(0, 4)}, b"1234"), r"claims the bytes 0:4"),
        (file({"w": entry(0, 4)}, b"12"), "truncated"),
        (file({"w": entry(0, 4)}, b"12345"), "truncated"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named_for_what_is_wrong(data: bytes, message: str) -> None:
    with pytest.raises(CorruptFile, match=message):
        open_bytes(data)


def test_a_huge_header_is_refused_before_it_is_read() -> None:
    asked = []

    def read(offset: int, length: int) -> bytes:
        asked.append(length)
        return (1 << 40).to_bytes(8, "little")

    with pytest.raises(CorruptFile, match="does not fit"):
        Stored(read, 1 << 50)
    assert asked == [8]


GOOD = Checkpoint(
    run="r", fingerprint="f", round=3, state=Tensors({"model/w": np.arange(5.0)}), memories={"a": "1.0"}, best=(2, 0.5),
    ledger=Ledger().add(0, 0, [Event(mechanism="gaussian", noise_multiplier=1.0)]),
).dump()  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_garbage_ends_in_corrupt_file_and_nothing_else(data: st.DataObject) -> None:
    broken = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(broken) - 1))
        broken[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        loaded = Checkpoint.load(bytes(broken))
        for tensors in (loaded.state, loaded.pipeline):
            assert tensors == Tensors({name: tensors[name] for name in tensors})
    except CorruptFile:
        pass


@settings(deadline=None)
@given(st.integers(0, len(GOOD) - 1))
def test_no_truncated_checkpoint_is_read(length: int) -> None:
    with pytest.raises(CorruptFile):
        Checkpoint.load(GOOD[:length])


@settings(deadline=None)
@given(JSON)
def test_metadata_of_any_other_form_is_corrupt(facts: Any) -> None:
    for broken in (facts, {**json.loads(open_bytes(GOOD)[1]["hansa"]), "ledger": facts, "memories": {}}):
        data = dump(Tensors(), {"hansa": json.dumps(broken)})
        try:
            assert isinstance(Checkpoint.load(data), Checkpoint)
        except CorruptFile:
            pass


def test_a_file_of_tensors_is_no_checkpoint() -> None:
    with pytest.raises(CorruptFile, match="this is no checkpoint of Hansa"):
        Checkpoint.load(dump(Tensors({"w": [1.0]})))


def test_ten_thousand_charges_cost_a_checkpoint_little() -> None:
    ledger = Ledger(tuple(Entry(n, 0, Event(mechanism="gaussian", noise_multiplier=1.0)) for n in range(10_000)))
    assert len(json.dumps(ledger.to_json())) < 200_000
    assert Ledger.from_json(ledger.to_json()) == ledger
