"""What travels: garbage in every form ends in one error, before it can do anything."""

import os

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from hansa.core.checkpoint import buffers, dump, open_stored
from hansa.core.errors import HansaError, ProtocolError
from hansa.core.runtime import Task
from hansa.core.tensors import Tensors
from hansa.runtimes.grpc.spool import Spool
from hansa.runtimes.grpc.wire import (
    CHUNK,
    INLINE,
    MESSAGE,
    Pieces,
    Tag,
    checked,
    parse,
    parse_one,
    pb,
    task_from_wire,
    task_to_wire,
)

TASK = Task(run="r", fingerprint="f" * 64, kind="train", version=1, round=1, attempt=0, client="w0", position=0)
KINDS = [pb.FromWorker, pb.ToWorker, pb.Answer, pb.PullRequest, pb.Question, pb.ModelRequest]


@given(st.binary(max_size=300), st.sampled_from(KINDS))
def test_random_bytes_are_a_message_or_a_protocol_error(data: bytes, kind: type) -> None:
    try:
        parse(kind, data)
    except ProtocolError:
        pass


@given(st.data())
def test_a_changed_message_is_a_message_or_a_protocol_error(data: st.DataObject) -> None:
    answer = pb.Answer(task=task_to_wire(TASK), leg=0, message=pb.Payload(size=3, inline=b"abc"), seconds=1.5)
    good = bytearray(pb.FromWorker(answer=answer).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(good) - 1))
        match data.draw(st.sampled_from(["change", "cut", "double", "swap"])):
            case "change":
                good[at] = data.draw(st.integers(0, 255))
            case "cut":
                del good[at:]
            case "double":
                good[at:at] = good[at:]
            case "swap":
                good[:] = good[at:] + good[:at]
        if not good:
            break
    try:
        what, message = parse_one(pb.FromWorker, bytes(good))
        if what in ("answer", "failed"):
            task_from_wire(message.task)
        if what == "answer":
            checked(message.message)
    except ProtocolError as error:
        assert str(error)


def test_unknown_fields_and_oversized_messages_are_refused() -> None:
    known = pb.Ping(number=3).SerializeToString()
    with pytest.raises(ProtocolError, match="unknown fields"):
        parse(pb.Ping, known + b"\x52\x01x")
    nested = pb.FromWorker(failed=pb.Failed(reason="r", task=pb.Task(run="r")))
    inner = nested.SerializeToString()[:-1]
    assert parse(pb.FromWorker, nested.SerializeToString())
    with pytest.raises(ProtocolError):
        parse(pb.FromWorker, inner)
    with pytest.raises(ProtocolError, match="larger content travels by"):
        parse(pb.Ping, bytes(MESSAGE + 1))
    with pytest.raises(ProtocolError, match="empty"):
        parse_one(pb.ToWorker, b"")


@pytest.mark.parametrize("field", ["run", "client", "since"])
@pytest.mark.parametrize("value", ["../../etc/passwd", "a/b", "..", "a\0b", "x" * 300])
def test_names_that_would_lead_out_of_a_folder_are_no_task(field: str, value: str) -> None:
    wire = task_to_wire(TASK)
    setattr(wire, field, value)
    with pytest.raises(ProtocolError, match=field):
        task_from_wire(wire)


def test_a_task_survives_the_wire() -> None:
    assert task_from_wire(parse(pb.Task, task_to_wire(TASK).SerializeToString())) == TASK


@pytest.mark.parametrize(
    "payload",
    [
        pb.Payload(),
        pb.Payload(size=3, inline=b"ab"),
        pb.Payload(size=2, inline=b"ab", name=bytes(32)),
        pb.Payload(size=5, name=bytes(28)),
        pb.Payload(size=5, name=bytes(32), tag=bytes(16)),
        pb.Payload(size=0, name=bytes(32)),
        pb.Payload(size=INLINE + 1, inline=bytes(INLINE + 1)),
    ],
)
def test_a_payload_says_one_thing(payload: object) -> None:
    with pytest.raises(ProtocolError):
        checked(payload)


@given(st.lists(st.binary(max_size=50), max_size=8), st.integers(0, 120), st.integers(1, 40))
def test_pieces_are_the_joined_bytes_from_any_offset(parts: list[bytes], offset: int, size: int) -> None:
    pieces, joined = Pieces(parts), b"".join(parts)
    chunks = list(pieces.chunks(offset, size))
    assert b"".join(chunks) == joined[offset:]
    assert all(len(chunk) == size for chunk in chunks[:-1])
    name = os.urandom(28)
    tag = Tag(name)
    tag.update(joined)
    assert pieces.tag(name) == tag.value()


@settings(max_examples=30)
@given(st.integers(1, 100_000), st.integers(0, 100_000), st.integers(0, 5_000))
def test_an_upload_is_read_back_from_anywhere(
    tmp_path_factory: pytest.TempPathFactory, size: int, at: int, length: int
) -> None:
    content, name = np.random.default_rng(size).bytes(size), os.urandom(28)
    spool = Spool(tmp_path_factory.mktemp("spool"))
    upload = spool.open(size, name, Pieces([content]).tag(name))
    for chunk in Pieces([content]).chunks(0, 8000):
        upload.write(chunk)
    assert upload.whole()
    at = min(at, size)
    assert bytes(upload.read(at, min(length, size - at))) == content[at : at + length]
    upload.close()
    upload.close()
    assert list(spool._folder.iterdir()) == []


def test_an_upload_is_sealed_and_checked(tmp_path: object) -> None:
    tensors = Tensors({"w": np.arange(100_000, dtype="float32")})
    content, name = dump(tensors), os.urandom(28)
    spool = Spool(tmp_path)  # type: ignore[arg-type]
    upload = spool.open(len(content), name, Pieces(buffers(tensors)).tag(name))
    for chunk in Pieces([content]).chunks():
        upload.write(chunk)
    assert content[1000:1100] not in upload._path.read_bytes()
    with pytest.raises(ProtocolError, match="after its end"):
        upload.write(b"x")
    with pytest.raises(ProtocolError, match="pieces over"):
        upload.write(bytes(CHUNK + 1))
    assert upload.whole()
    assert open_stored(upload.read, upload.size)[0] == tensors
    upload.close()
    wrong = spool.open(len(content), name, bytes(16))
    for chunk in Pieces([content]).chunks():
        wrong.write(chunk)
    assert not wrong.whole()
    wrong.close()


@given(st.binary(max_size=200))
def test_a_garbled_update_is_one_of_our_errors(data: bytes) -> None:
    try:
        open_stored(lambda offset, length: data[offset : offset + length], len(data))
    except HansaError:
        pass
