"""An enrolled worker that misbehaves is refused with a sentence that is logged, and changes no bit of the model."""

import os
import queue
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hansa.core.checkpoint import dump, open_bytes
from hansa.core.tensors import Tensors
from hansa.crypto.identity import Identity
from hansa.runtimes.grpc.session import GrpcSession
from hansa.runtimes.grpc.tls import channel_options, client_credentials, grpc
from hansa.runtimes.grpc.wire import CHUNK, PROTOCOL, SERVICE, Pieces, parse_one, pb
from tests.runtimes.federation import Federation, data_of, write_job
from tests.runtimes.test_deploy import local_state, same_bits

HELLO = pb.FromWorker(hello=pb.Hello(protocol=PROTOCOL, hansa="test", nonce=bytes(32)))


class Rogue:
    """A worker's stream whose every byte a test decides."""

    def __init__(self, federation: Federation, name: str) -> None:
        path = federation.identity(name)
        assert path is not None
        self.channel = grpc.secure_channel(
            federation.address, client_credentials(Identity.load(path)), options=channel_options()
        )
        self.say: queue.Queue[Any] = queue.Queue()
        self.stream = self.channel.stream_stream(f"/{SERVICE}/Work")(iter(self.say.get, None))

    def send(self, message: Any) -> None:
        self.say.put(message if isinstance(message, bytes) else message.SerializeToString())

    def hear(self) -> tuple[str, Any]:
        return parse_one(pb.ToWorker, next(self.stream))

    def hear_offer(self) -> Any:
        while True:
            what, message = self.hear()
            if what == "offer":
                return message

    def refused(self) -> str:
        """Why the server ended the stream."""
        with pytest.raises(grpc.RpcError) as caught:
            list(self.stream)
        return f"{caught.value.code().name}: {caught.value.details()}"

    def close(self) -> None:
        self.say.put(None)
        self.channel.close()


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("garbage")
    with Federation(folder, workers=2) as running:
        running.start_server(ping_s=5)
        yield running


@pytest.fixture
def rogue(federation: Federation) -> Iterator[Rogue]:
    made = Rogue(federation, "w1")
    yield made
    made.close()


def log_of(federation: Federation) -> str:
    assert federation.server is not None
    return federation.server.output


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([b"\xff\xff garbage"], "INVALID_ARGUMENT: .* no message of kind FromWorker"),
        ([b""], "INVALID_ARGUMENT: .*empty"),
        ([pb.FromWorker(ping=pb.Ping(number=1))], "begins with hello, not with ping"),
        ([pb.FromWorker(hello=pb.Hello(protocol=99))], "speaks protocol 99"),
        ([HELLO, HELLO], "said hello twice"),
        ([HELLO, HELLO.SerializeToString()[:-3]], "INVALID_ARGUMENT: .* no message"),
        ([HELLO, HELLO.SerializeToString() + b"\x9a\x06\x01x"], "unknown fields"),
        ([HELLO, bytes(2 << 20)], "RESOURCE_EXHAUSTED"),
        (
            [HELLO, pb.FromWorker(failed=pb.Failed(task=pb.Task(run="r", kind="train", client="w0", role="worker")))],
            "'w1' answers for 'w0'",
        ),
        (
            [HELLO, pb.FromWorker(answer=pb.Answer(task=pb.Task(run="../x", kind="train", client="w1")))],
            "field 'run' cannot be",
        ),
    ],
)
def test_a_stream_of_garbage_ends_with_one_reason(
    federation: Federation, rogue: Rogue, messages: list[Any], reason: str
) -> None:
    import re

    for message in messages:
        rogue.send(message)
    said = rogue.refused()
    assert re.search(reason, said), said
    if "EXHAUSTED" not in reason:
        sentence = said.split(": ", 1)[1]
        until = time.monotonic() + 5
        while sentence not in log_of(federation):
            assert time.monotonic() < until, log_of(federation)
            time.sleep(0.02)


def test_doubled_late_foreign_and_damaged_answers_change_no_bit(federation: Federation, tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", cohort=2, rounds=2)
    want = local_state(job, federation.names)
    federation.start_worker("w0", data_of(job).format(name="w0"))
    assert federation.server is not None
    federation.server.wait_for("w0 connected")
    rogue = Rogue(federation, "w1")
    rogue.send(HELLO)
    run = federation.submit(job)
    offer = rogue.hear_offer()
    good = honest(job, offer)
    wrong = pb.Answer(task=offer.task, message=payload(good * 1000.0))

    foreign = pb.Answer()
    foreign.CopyFrom(wrong)
    foreign.task.run = "another"
    other_round = pb.Answer()
    other_round.CopyFrom(wrong)
    other_round.task.round = 7
    other_job = pb.Answer()
    other_job.CopyFrom(wrong)
    other_job.task.fingerprint = "0" * 64
    other_leg = pb.Answer()
    other_leg.CopyFrom(wrong)
    other_leg.leg = 3
    for answer in (foreign, other_round, other_job, other_leg):
        rogue.send(pb.FromWorker(answer=answer))
    truth = pb.Answer(task=offer.task, message=payload(good), seconds=0.1)
    rogue.send(pb.FromWorker(answer=truth))
    for doubled in (truth, wrong):
        rogue.send(pb.FromWorker(answer=doubled))

    second = rogue.hear_offer()
    assert second.task.round == 1
    rogue.send(pb.FromWorker(answer=wrong))  # of the round before
    rogue.send(pb.FromWorker(answer=pb.Answer(task=second.task, message=payload(honest(job, second, good)))))
    status = federation.wait(run)
    rogue.close()
    assert status["state"] == "done", federation.output
    with federation.client() as client:
        got = client.model(run)
        late = sum(event["record"]["late"] for event in client.watch(run) if "record" in event)
    assert same_bits(got, want)
    assert late >= 3, "what did not count is counted as such"


def honest(job: Path, offer: Any, memory: Tensors | None = None) -> Tensors:
    """What an honest w1 would answer."""
    from hansa.core.worker import perform
    from hansa.data.files import load
    from hansa.runtimes.grpc.wire import task_from_wire
    from hansa.runtimes.jobfile import load_job

    kept = Tensors()
    if memory is not None:
        kept = Tensors.join(algorithm=memory.part("value"))
    talk = perform(
        load_job(job),
        task_from_wire(offer.task),
        open_bytes(offer.down.inline)[0],
        load(data_of(job).format(name="w1")),
        kept,
    )
    return next(talk)


def payload(message: Tensors) -> Any:
    content = dump(message)
    return pb.Payload(size=len(content), inline=content)


def test_a_damaged_message_fails_its_sender_and_says_so(federation: Federation, tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", cohort=2, rounds=2)
    rogue = Rogue(federation, "w1")
    rogue.send(HELLO)
    run = federation.submit(job)
    offer = rogue.hear_offer()
    content = os.urandom(500)
    rogue.send(pb.FromWorker(answer=pb.Answer(task=offer.task, message=pb.Payload(size=500, inline=content))))
    status = federation.wait(run)
    rogue.close()
    assert status["state"] == "failed" and "w1: its message cannot be read" in status["reason"], status


@pytest.mark.parametrize("fault", ["nan", "shape", "names"])
def test_an_update_that_may_not_be_counted_is_named(federation: Federation, tmp_path: Path, fault: str) -> None:
    job = write_job(tmp_path / "job", cohort=2, rounds=2)
    rogue = Rogue(federation, "w1")
    rogue.send(HELLO)
    run = federation.submit(job)
    good = honest(job, offer := rogue.hear_offer())
    bad = {
        "nan": good.updated({"value/w": np.full(3, np.nan, "float32")}),
        "shape": good.updated({"value/w": np.zeros(4, "float32")}),
        "names": good.updated({"value/other": np.zeros(3, "float32")}),
    }[fault]
    rogue.send(pb.FromWorker(answer=pb.Answer(task=offer.task, message=payload(bad))))
    status = federation.wait(run)
    rogue.close()
    assert status["state"] == "failed"
    assert "w1: its update was rejected" in status["reason"], status


def test_an_upload_too_long_too_short_or_damaged_is_refused(federation: Federation, tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", cohort=2, rounds=1, size=600_000)
    rogue = Rogue(federation, "w1")
    rogue.send(HELLO)
    run = federation.submit(job)
    offer = rogue.hear_offer()
    push = rogue.channel.stream_unary(f"/{SERVICE}/Push")
    content, name = os.urandom(1_000_000), os.urandom(28)
    tag = Pieces([content]).tag(name)

    def pushed(chunks: list[bytes], size: int = len(content), tag: bytes = tag) -> str:
        answer = pb.Answer(task=offer.task, message=pb.Payload(size=size, name=name, tag=tag))
        header = (("hansa-answer-bin", answer.SerializeToString()),)
        with pytest.raises(grpc.RpcError) as caught:
            push(iter(chunks), metadata=header, timeout=10)
        return str(caught.value.details())

    pieces = list(Pieces([content]).chunks())
    assert "ended after 524288 of 1000000 bytes: send the rest" in pushed(pieces[:1])
    assert "goes on after its end" in pushed(pieces)  # the first piece is there already
    assert "pieces over" in pushed([bytes(CHUNK + 1)], tag=bytes(16), size=999_999)
    assert "not what it said to be" in pushed(pieces, tag=bytes(16))
    with federation.client() as client:
        assert client.status(run)["state"] == "running", "a transfer that goes wrong can be tried again"
    assert "no such message has more than" in pushed([b"x"], size=1 << 40)
    assert federation.wait(run)["state"] == "failed"
    rogue.close()
    state = federation.folder / "state" / "spool"
    assert list(state.iterdir()) == []


def test_deadlines_are_those_of_a_clock_that_cannot_be_set() -> None:
    """What decides times in a session and in the federation's leases is the event loop's clock and `monotonic`."""
    import inspect

    from hansa.runtimes.grpc import federation, session

    assert "time.time()" not in inspect.getsource(session)
    assert "time.time()" not in inspect.getsource(federation.Federation.away_s)
    assert "time.time()" not in inspect.getsource(federation.Federation._look)
    assert "call_later" in inspect.getsource(GrpcSession._arm)
