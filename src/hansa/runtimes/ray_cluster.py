"""The Ray cluster that a run uses: one that is there, or a private one that nobody else can reach.

Left to itself, a Ray that is started on a machine listens on all its addresses, keeps its sockets in a folder that is
open to every user, and tells its makers that it was started. The private one listens on the loopback address, asks for
a token that only this process and its children know, lives in a folder of its own that goes with it, and tells nobody.
"""

import logging
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray._private import ray_constants
from ray.exceptions import RayError

from hansa.core.errors import ConfigError, Unreachable

LOOPBACK = "127.0.0.1"
QUIET: Mapping[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


@contextmanager
def connected(address: str | None, processors: int, store_bytes: int) -> Iterator[bool]:
    """Connects this process to a cluster, gives whether it may grow, and leaves it in the end.

    Args:
      address: of the cluster; None for a private one. A process that is connected already stays so.
      processors, store_bytes: what a private one is given.

    Raises:
      ConfigError: this process is connected to another cluster, or a private one could not be made.
      Unreachable: nobody answers.
    """
    if ray.is_initialized():
        if address is not None:
            raise ConfigError(f"address='{address}', but this process has called ray.init: leave the address out.")
        yield True
    elif address is None:
        with _private(processors, store_bytes):
            yield False
    else:
        try:
            _answers(address)
            ray.init(address=address, **QUIET)
        except (OSError, RuntimeError, ValueError, RayError) as error:
            ray.shutdown()
            raise Unreachable(
                f"no Ray cluster takes us in at '{address}' ({error}): start one by `ray start --head`, or give the "
                "address that it printed."
            ) from error
        try:
            yield True
        finally:
            ray.shutdown()


def _answers(address: str) -> None:
    """OSError if nobody listens at HOST:PORT, which Ray itself would try for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def room(cpus: float, gpus: float) -> int:
    """How many workers of this size fit into the nodes that are alive, were they empty."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    wanted = {"CPU": cpus, "GPU": gpus}
    return sum(min(int(node.get(kind, 0) / each + 1e-9) for kind, each in wanted.items() if each) for node in nodes)


@contextmanager
def _private(processors: int, store_bytes: int) -> Iterator[None]:
    # Ray opens its own folder to everybody, so it stands in one that is ours alone. A socket's path must be short.
    folder = tempfile.mkdtemp(prefix="hansa-ray-", dir="/tmp")
    with _withdrawn():
        try:
            ray.init(
                address="local", num_cpus=processors, object_store_memory=store_bytes, include_dashboard=False,
                _temp_dir=f"{folder}/ray", **QUIET,
            )  # fmt: skip
            if ray.util.get_node_ip_address() != LOOPBACK:
                raise ConfigError(
                    f"Ray {ray.__version__} would listen to other machines: run `ray start --head` as your network "
                    "needs it, and give Ray(address='auto')."
                )
            yield
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _withdrawn() -> Iterator[None]:
    """What this process, and the cluster that it starts, are told by their environment; put back in the end."""
    changes = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",  # no other machines, so Ray takes the loopback address
    }
    before = {name: value for name, value in os.environ.items() if _of_ray(name)}
    clusters, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False  # read when it was imported
    os.environ.update(changes)
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = clusters
        for name in filter(_of_ray, list(os.environ)):
            del os.environ[name]
        os.environ.update(before)
        _forget_token()


def _of_ray(name: str) -> bool:
    """Whether an environment variable is one that Ray reads or sets."""
    return name.startswith("RAY_") or name == "PYTHONBREAKPOINT"


def _forget_token() -> None:
    """Ray keeps the token it has seen first, and the next cluster has another."""
    with suppress(AttributeError):  # a Ray that has no tokens
        ray._raylet.AuthenticationTokenLoader.instance().reset_cache()
        ray._raylet.Config.initialize("")
