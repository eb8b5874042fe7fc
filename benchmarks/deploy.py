"""What a deployed federation costs, beside bounds measured in the same run.

    python benchmarks/deploy.py [name ...]           all of them, or those named
    small2 small8 medium medium16 large huge idle absence

Server and workers are processes on this machine, over mutual TLS 1.3, committed durably. Each line is
`name value unit`, with the target, the peers' figure from BASELINES.md, and the ratio to a bound: `bare` moves the same
bytes over sockets of Python's own `ssl`, server and workers as processes too; `fsync` is the disk's.
"""

import argparse
import contextlib
import os
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from tests.runtimes.federation import Federation  # noqa: E402

JOB = '''
from dataclasses import dataclass
import numpy as np
from hansa.core.algorithm import Algorithm, Update
from hansa.core.job import Job
from hansa.core.model import Fit, LocalWork, Model
from hansa.core.pipeline import Pipeline
from hansa.core.tensors import Tensors
from hansa.stages.mean import UniformMean
from hansa.stages.sum import Sum

SHAPES = {{f"w{{i}}": ((n,), "float32") for i, n in enumerate({sizes})}}


@dataclass(frozen=True)
class Nothing(Model):
    """Trains nothing: what is measured is the federation."""
    metrics = {{}}

    def init(self, seed):
        return Tensors({{name: np.zeros(*shape) for name, shape in SHAPES.items()}})

    def shapes(self):
        return SHAPES

    def fit(self, params, data, work, rng):
        return Fit(params, 0)

    def evaluate(self, params, data):
        return {{}}


@dataclass(frozen=True)
class NoOp(Algorithm):
    """The update is what was sent: no arithmetic of ours is measured at the workers."""

    def train(self, model, down, memory, data, rng):
        return Update(difference=down.part("model"), weight=1.0)


job = Job(model=Nothing(), algorithm=NoOp(LocalWork(lr=0.0, steps=1)), pipeline=Pipeline([UniformMean()], Sum()),
          cohort={cohort}, rounds={rounds}, name="no-op")
'''


def write(folder: Path, sizes: list[int], cohort: int, rounds: int) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "mydata.py").write_text("def rows():\n    return [0]\n")
    job = folder / "job.py"
    job.write_text(JOB.format(sizes=sizes, cohort=cohort, rounds=rounds))
    return job


def memory_mb(pid: int) -> float:
    """Anonymous and shared memory that is resident: what the process really holds, without files it maps."""
    fields = dict(line.split(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem")) / 1024


class Peak:
    """The greatest memory of a process from now on."""

    def __init__(self, pid: int) -> None:
        self._pid, self._going = pid, True
        self.idle = self.peak = memory_mb(pid)
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while self._going:
            with contextlib.suppress(OSError, ValueError):
                self.peak = max(self.peak, memory_mb(self._pid))
            time.sleep(0.01)

    def end(self) -> float:
        self._going = False
        self._thread.join()
        return self.peak - self.idle


def fsync_ms(folder: Path, size: int, count: int = 30) -> float:
    """Median time of the disk for `size` more bytes."""
    times, content = [], os.urandom(size)
    with open(folder / "probe", "wb", buffering=0) as file:
        for _ in range(count):
            file.write(content)
            began = time.perf_counter()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - began)
    (folder / "probe").unlink()
    return statistics.median(times) * 1e3


# -- the bound: the same bytes over bare mutual TLS

_BARE = """
import socket, ssl, sys
host, pem, authority = sys.argv[1], sys.argv[3], sys.argv[4]
port, size, rounds = int(sys.argv[2]), int(sys.argv[5]), int(sys.argv[6])
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT); context.minimum_version = ssl.TLSVersion.TLSv1_3
context.load_verify_locations(authority); context.load_cert_chain(pem)
plain = socket.create_connection((host, port)); plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
tls = context.wrap_socket(plain, server_hostname=host)
buffer = memoryview(bytearray(size))
for _ in range(rounds):
    n = 0
    while n < size: n += tls.recv_into(buffer[n:])
    tls.sendall(buffer)
"""


def bare_s(federation: Federation, size: int, workers: int, rounds: int) -> float:
    """Median seconds of a round that only moves bytes: a thread of the server for each worker process."""
    folder = federation.folder / "authority"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(folder / "authority.pem")
    context.load_cert_chain(folder / "members" / "server.pem")
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    pems = [str(folder / "members" / f"{name}.pem") for name in federation.names[:workers]]
    arguments = [str(size), str(rounds)]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", _BARE, "127.0.0.1", str(port), pem, str(folder / "authority.pem"), *arguments]
        )
        for pem in pems
    ]
    links = []
    for _ in pems:
        plain, _ = listener.accept()
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        links.append(context.wrap_socket(plain, server_side=True))
    model, times = memoryview(bytearray(size)), []
    buffers = [memoryview(bytearray(min(size, 1 << 22))) for _ in links]

    def serve(link: ssl.SSLSocket, buffer: memoryview) -> None:
        link.sendall(model)
        left = size
        while left:
            left -= link.recv_into(buffer[: min(left, len(buffer))])

    for _ in range(rounds):
        began = time.perf_counter()
        threads = [threading.Thread(target=serve, args=pair) for pair in zip(links, buffers, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        times.append(time.perf_counter() - began)
    for child in children:
        child.wait()
    for link in links:
        link.close()
    listener.close()
    return statistics.median(times)


# -- ours


@contextlib.contextmanager
def federation(workers: int) -> Iterator[Federation]:
    with (
        tempfile.TemporaryDirectory(dir=os.environ.get("BENCHMARK_FOLDER")) as folder,
        Federation(Path(folder), workers) as running,
    ):
        job = write(Path(folder) / "job", [1], workers, 1)
        running.start_server()
        running.start_workers(f"{job.parent / 'mydata.py'}:rows")
        yield running


def rounds_of(running: Federation, sizes: list[int], cohort: int, rounds: int) -> tuple[list[float], float]:
    """Seconds of each round but the first (which loads the job), and megabytes of the server above idle."""
    job = write(running.folder / "job", sizes, cohort, rounds)
    assert running.server is not None
    peak = Peak(running.server.popen.pid)
    run = running.submit(job)
    status = running.wait(run, 600, poll_s=0.5)
    assert status["state"] == "done", f"{status}\n{running.output}"
    with running.client() as client:
        seconds = [event["record"]["seconds"] for event in client.watch(run) if "record" in event]
    return seconds[1:], peak.end()


def tell(name: str, value: float, unit: str, target: str, beside: str) -> None:
    print(f"{name:28} {value:9.2f} {unit:4}  target {target:12} {beside}", flush=True)


def small(workers: int, target_ms: float, peers: str) -> None:
    with federation(workers) as running:
        rounds_of(running, [25_000], workers, 20)
        seconds, _ = rounds_of(running, [25_000], workers, 150)
        bare = bare_s(running, 100_000, workers, 60) * 1e3
        disk = fsync_ms(running.folder, 100_000)
    value = statistics.median(seconds) * 1e3
    tell(
        f"no-op 0.1 MB x {workers}",
        value,
        "ms",
        f"< {target_ms:g} ms",
        f"bare {bare:.2f} ms, fsync {disk:.2f} ms: {value / (bare + disk):.1f} x their sum; peers {peers}",
    )


def bulk(name: str, coordinates: int, workers: int, rounds: int, target: str, peers: str, model_limit: float) -> float:
    layers = 8
    sizes = [coordinates // layers] * layers
    megabytes = coordinates * 4 / 1e6
    with federation(workers) as running:
        before = bare_s(running, coordinates * 4, workers, 3)
        seconds, above = rounds_of(running, sizes, workers, rounds)
        bare = (before + bare_s(running, coordinates * 4, workers, 3)) / 2  # the machine is not as busy all the time
        disk = fsync_ms(running.folder, int(megabytes * 1e6), 3) / 1e3
    value = statistics.median(seconds)
    tell(
        f"{name}: a round",
        value,
        "s",
        target,
        f"bare {bare:.2f} s: {value / bare:.2f} x; fsync of the model {disk:.2f} s; peers {peers}",
    )
    tell(
        f"{name}: memory above idle",
        above,
        "MB",
        f"< {model_limit:g} x model",
        f"{above * 1.048576 / megabytes:.2f} x the model of {megabytes:.0f} MB",
    )
    return above


def huge() -> None:
    """3 GB in float32 with one worker: a round and the server's memory in all."""
    with federation(1) as running:
        job = write(running.folder / "job", [93_750_000] * 8, 1, 2)
        assert running.server is not None
        peak = Peak(running.server.popen.pid)
        began = time.perf_counter()
        run = running.submit(job)
        status = running.wait(run, 900)
        assert status["state"] == "done", f"{status}\n{running.output}"
        seconds = time.perf_counter() - began
        peak.end()
    tell("3 GB x 1: two rounds", seconds, "s", "completes", "")
    tell("3 GB x 1: server in all", peak.peak / 1024, "GiB", "< 8", "")


_IDLE = """
import asyncio, json, os, sys, time
from hansa.crypto.identity import Identity
from hansa.runtimes.grpc.tls import channel_options, client_credentials, grpc
from hansa.core.checkpoint import dump, open_bytes
from hansa.core.tensors import Tensors
from hansa.runtimes.grpc.wire import PROTOCOL, SERVICE, parse_one, pb
update = []
address, folder, first, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])

async def light(name):
    identity = Identity.load(f"{folder}/{name}.pem")
    while True:
        async with grpc.aio.secure_channel(address, client_credentials(identity), options=channel_options()) as channel:
            while True:
                try:
                    call = channel.stream_stream(f"/{SERVICE}/Work")(wait_for_ready=True)
                    hello = pb.Hello(protocol=PROTOCOL, hansa="light", nonce=os.urandom(32))
                    await call.write(pb.FromWorker(hello=hello).SerializeToString())
                    _, welcome = parse_one(pb.ToWorker, await call.read())
                    print("IN", time.time(), flush=True)
                    async def ping():
                        while True:
                            await asyncio.sleep(welcome.ping_s)
                            await call.write(pb.FromWorker(ping=pb.Ping(number=1)).SerializeToString())
                    pinging = asyncio.create_task(ping())
                    try:
                        while (data := await call.read()) is not grpc.aio.EOF:
                            what, message = parse_one(pb.ToWorker, data)
                            if what == "offer":
                                print("OFFER", time.time(), flush=True)
                                if not update:
                                    model = open_bytes(message.down.inline)[0].part("model")
                                    update.append(dump(Tensors.join(value=model)))
                                payload = pb.Payload(size=len(update[0]), inline=update[0])
                                answer = pb.Answer(task=message.task, message=payload)
                                await call.write(pb.FromWorker(answer=answer).SerializeToString())
                    finally:
                        pinging.cancel()
                except grpc.aio.AioRpcError:
                    pass

async def main():
    await asyncio.gather(*(light(f"w{i}") for i in range(first, first + count)))

asyncio.run(main())
"""


class Lights:
    """Light workers of the real protocol, many in one process."""

    def __init__(self, running: Federation, count: int, processes: int = 4) -> None:
        each = count // processes
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        folder = str(running.folder / "authority" / "members")
        self.said: list[tuple[str, float]] = []
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", _IDLE, running.address, folder, str(i * each), str(each)],
                env=environment, stdout=subprocess.PIPE, text=True,
            )
            for i in range(processes)
        ]  # fmt: skip
        for process in self.processes:
            threading.Thread(target=self._read, args=(process,), daemon=True).start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            what, when = line.split()
            self.said.append((what, float(when)))

    def wait(self, what: str, count: int, timeout_s: float = 120) -> list[float]:
        until = time.monotonic() + timeout_s
        while True:
            times = [when for said, when in self.said if said == what]
            if len(times) >= count:
                return times
            assert time.monotonic() < until, f"{len(times)} of {count} said {what}"
            time.sleep(0.05)

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def idle(count: int = 1000) -> None:
    """Many connected workers with nothing to do, and then a round of all of them."""
    with tempfile.TemporaryDirectory() as folder, Federation(Path(folder), count) as running:
        running.start_server()
        lights = Lights(running, count)
        try:
            lights.wait("IN", count)
            time.sleep(5)
            assert running.server is not None
            server = psutil.Process(running.server.popen.pid)
            before = server.cpu_times()
            began = time.perf_counter()
            time.sleep(65)  # a keep-alive and two pings of each
            after = server.cpu_times()
            busy = (after.user + after.system - before.user - before.system) / (time.perf_counter() - began)
            tell("1,000 idle: of a core", busy * 100, "%", "< 2 %", "peers: 400 at 61 %")
            tell("1,000 idle: server", memory_mb(server.pid), "MiB", "< 200", "anonymous and shared")
            job = write(running.folder / "job", [1000], count, 3)
            run = running.submit(job, workers=count)
            status = running.wait(run, 60)
            assert status["state"] == "done", status
            offers = sorted(lights.wait("OFFER", 3 * count))
            spreads = [max(part) - min(part) for part in (offers[i * count : (i + 1) * count] for i in range(3))]
            tell(
                "1,000: a new round reaches all",
                statistics.median(spreads),
                "s",
                "< 1 s",
                "first to last of them, median of three rounds",
            )
        finally:
            lights.end()


def absence(count: int = 100) -> None:
    """The server is away for 15 s; then all of them are back."""
    with tempfile.TemporaryDirectory() as folder, Federation(Path(folder), count) as running:
        running.start_server()
        lights = Lights(running, count, 2)
        try:
            lights.wait("IN", count)
            assert running.server is not None
            running.server.kill()
            running.server.end()
            time.sleep(15)
            lights.said.clear()
            running.start_server()
            served = time.time()
            back = max(lights.wait("IN", count)) - served
            tell(f"after 15 s away: all {count} back", back, "s", "< 1.5 s", "peers: 10 s with gRPC's defaults")
        finally:
            lights.end()


def main() -> None:
    benchmarks = {
        "small2": lambda: small(2, 8, "2-6.5 s"),
        "small8": lambda: small(8, 20, "2-3 s"),
        "medium": lambda: bulk("50 MB x 8", 12_500_000, 8, 6, "< 2.75 x", "5.2-21 s", 3),
        "medium16": lambda: bulk("50 MB x 16", 12_500_000, 16, 4, "+ < 10 MiB", "", 3),
        "large": lambda: bulk("250 MB x 4", 62_500_000, 4, 4, "< 6 s", "x 2: 14-19 s", 2.3),
        "huge": huge,
        "idle": idle,
        "absence": absence,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(benchmarks))
    for name in parser.parse_args().names or benchmarks:
        benchmarks[name]()


if __name__ == "__main__":
    main()
