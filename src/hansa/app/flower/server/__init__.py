"""`start_server`: Hansa's server in this process, to which it submits three jobs; see `bridge`."""

import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hansa.app.flower import bridge
from hansa.app.flower.bridge import here
from hansa.app.flower.server import strategy as strategy
from hansa.app.flower.server.strategy import FedAvg
from hansa.app.flower.weights import Weights
from hansa.core.errors import ConfigError, TrainingFailed
from hansa.core.job import Job

if TYPE_CHECKING:
    from hansa.crypto.identity import Identity
    from hansa.runtimes.grpc.client import Client

LOG = logging.getLogger("hansa.flower")


@dataclass
class History:
    """What a training leaves behind: (round, value) pairs, and the last parameters."""

    losses_centralized: list[tuple[int, float]] = field(default_factory=list)
    metrics_centralized: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    losses_distributed: list[tuple[int, float]] = field(default_factory=list)
    metrics_distributed: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    parameters: Weights | None = None


def start_server(
    server_address: str = "[::]:8080",
    config: Mapping[str, int] | None = None,
    strategy: FedAvg | None = None,
    **ignored: Any,
) -> History:
    """Serves until training is over.

    Args:
      server_address: HOST:PORT to listen at; port 0 takes a free one. Without HANSA_IDENTITY every host becomes
        127.0.0.1.
      config: `num_rounds`, 1 by default.
      strategy: who fits when; `FedAvg()` if None.
      ignored: settings of Flower's own transport.

    Raises:
      ConfigError: an identity without a submitter's, or an unknown setting.
      TrainingFailed: a round could not be completed; says whose fault.
    """
    from hansa.crypto.identity import Identity
    from hansa.runtimes.grpc.client import Client
    from hansa.runtimes.grpc.server import Server

    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    LOG.setLevel(logging.INFO)
    how, rounds = strategy or FedAvg(), _rounds(config or {})
    identity, submitter, listen = None, None, server_address
    if "HANSA_IDENTITY" in os.environ:
        if "HANSA_SUBMITTER" not in os.environ:
            raise ConfigError(
                "HANSA_IDENTITY without HANSA_SUBMITTER: name an identity of role submitter, which signs."
            )
        identity = Identity.load(os.environ["HANSA_IDENTITY"])
        submitter = Identity.load(os.environ["HANSA_SUBMITTER"])
    else:
        listen = f"127.0.0.1:{server_address.rpartition(':')[2]}"
        LOG.warning("no HANSA_IDENTITY: no TLS and no identities, so only this machine can connect, at %s", listen)
    here.eval_fn, here.first = how.eval_fn, None
    with tempfile.TemporaryDirectory(prefix="hansa-flower-") as folder:
        server = Server(Path(folder) / "state", listen=listen, identity=identity, insecure=identity is None)
        address = server.start()
        try:
            dialled = f"{_dialled(address, identity)}:{address.rpartition(':')[2]}"
            with Client(dialled, identity=submitter, insecure=submitter is None) as client:
                return _train(_Runs(client, submitter, Path(folder), how.min_available_clients), how, rounds)
        finally:
            server.stop()


def _dialled(address: str, identity: "Identity | None") -> str:
    """Where this process reaches its own server: under a name that the certificate has."""
    return "127.0.0.1" if identity is None else os.environ.get("HANSA_HOST", "localhost")


def _rounds(config: Mapping[str, int]) -> int:
    unknown = sorted(set(config) - {"num_rounds", "round_timeout"})
    if unknown:
        raise ConfigError(f"config has {unknown}: num_rounds is what there is.")
    return int(config.get("num_rounds", 1))


def _train(runs: "_Runs", how: FedAvg, rounds: int) -> History:
    """The three runs."""
    if how.initial_parameters is None:
        LOG.info("waiting for %d clients, and asking one for its first parameters", how.min_available_clients)
        layout, flat = bridge.read(runs.run(bridge.asking_layout)["layout"])
        first = runs.run(bridge.asking_first, layout, flat)
    else:
        layout, flat = bridge.read(bridge.written(how.initial_parameters))
        first = bridge.tensors_of(how.initial_parameters)
    here.first = first
    history = History()
    if how.eval_fn is not None:
        begun = bridge.central(bridge.Known(layout=layout, flat=flat), first)
        LOG.info("round 0: %s", _shown(begun))
        _note(history.losses_centralized, history.metrics_centralized, 0, begun)

    def observe(record: Mapping[str, Any]) -> None:
        at = record["round"] + 1
        LOG.info("round %d of %d: %s", at, rounds, _shown({**record["workers"], **record["central"]}))
        _note(history.losses_centralized, history.metrics_centralized, at, record["central"])
        _note(history.losses_distributed, history.metrics_distributed, at, record["workers"])

    settings = (layout, flat, rounds, how.fitting, how.eval_fn is not None, how.evaluating)
    history.parameters = bridge.weights_of(runs.run(bridge.training, *settings, observe=observe), flat)
    return history


@dataclass
class _Runs:
    """Submits jobs to the server of this process."""

    client: "Client"
    identity: "Identity | None"
    folder: Path
    workers: int

    def run(
        self,
        function: Callable[..., Job],
        *arguments: Any,
        observe: Callable[[Mapping[str, Any]], None] = lambda record: None,
    ) -> Any:
        """One job to its end; its model."""
        from hansa.runtimes.bundle import pack

        path = self.folder / f"hansa_flower_{function.__name__}.py"
        path.write_text(bridge.source(function, *arguments), encoding="utf-8")
        run = self.client.submit(pack(path, None, self.identity), workers=self.workers)
        last: Mapping[str, Any] = {}
        for event in self.client.watch(run):
            if "record" in event:
                observe(event["record"])
            last = event.get("status", last)
        if last.get("state") != "done":
            raise TrainingFailed(f"'{function.__name__}' ended as {last.get('state')}: {last.get('reason')}")
        return self.client.model(run).state.part("model")


def _note(
    losses: list[tuple[int, float]], metrics: dict[str, list[tuple[int, float]]], at: int, found: Mapping[str, Any]
) -> None:
    for name, number in _numbers(found):
        (losses if name == "loss" else metrics.setdefault(name, [])).append((at, number))


def _numbers(found: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    return ((name, number) for name, number in found.items() if number is not None)


def _shown(found: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {number:.4f}" for name, number in _numbers(found)) or "done"
