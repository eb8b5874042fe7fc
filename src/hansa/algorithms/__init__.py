"""Federated algorithms, one file a paper; `named` makes one by its name.

    >>> named("FedProx", lr=0.1, epochs=1, mu=0.01).mu
    0.01

Each is a frozen dataclass over `Algorithm`, whose defaults are federated averaging. docs/algorithms.md has them all in
one table, with their formulas and what they need of the pipeline.
"""

import dataclasses
from typing import Any

from hansa.algorithms.fedavg import FedAvg
from hansa.algorithms.fedbuff import FedBuff
from hansa.algorithms.fednova import FedNova
from hansa.algorithms.fedopt import FedAdagrad, FedAdam, FedAvgM, FedYogi
from hansa.algorithms.fedprox import FedProx
from hansa.algorithms.fedsgd import FedSGD
from hansa.algorithms.qfedavg import QFedAvg
from hansa.algorithms.scaffold import Scaffold
from hansa.core.algorithm import Algorithm
from hansa.core.errors import ConfigError
from hansa.core.model import LocalWork

ALGORITHMS: dict[str, type[Algorithm]] = {
    kind.__name__: kind
    for kind in (FedAvg, FedSGD, FedProx, FedAdagrad, FedAdam, FedYogi, FedAvgM, Scaffold, FedBuff, FedNova, QFedAvg)
}

__all__ = [*ALGORITHMS, "ALGORITHMS", "named"]


def named(*name: str, **settings: Any) -> Algorithm:
    """The algorithm of one name, built in one call, as command lines and forms need it.

    Args:
      name: exactly one of `ALGORITHMS`; capitals, `-` and `_` make no difference (`fed_avg`).
      settings: fields of the algorithm, and of its `LocalWork` unless `work` itself is given.

    Raises:
      ConfigError: no or an unknown name, two names, or a setting that it does not have.
    """
    choices = ", ".join(sorted(ALGORITHMS))
    if len(name) != 1:
        given = " and ".join(name) or "nothing"
        raise ConfigError(f"algorithm={given}: exactly one is needed, choose from {choices}.")
    plain = {kind.lower(): kind for kind in ALGORITHMS}
    found = plain.get(name[0].lower().replace("-", "").replace("_", ""))
    if found is None:
        raise ConfigError(f"algorithm={name[0]}: it is not known, choose from {choices}.")
    kind = ALGORITHMS[found]
    own = {field.name for field in dataclasses.fields(kind)}
    local = {field.name for field in dataclasses.fields(LocalWork)} - {"correction", "mask"}
    if unknown := sorted(set(settings) - own - local):
        raise ConfigError(f"{unknown[0]}={settings[unknown[0]]}: {found} has {', '.join(sorted(own | local))}.")
    work = {key: settings[key] for key in settings if key in local and key not in own}
    if work and "work" in settings:
        raise ConfigError(f"work and {', '.join(sorted(work))}: give local training once, as work or by its fields.")
    try:
        if work:
            settings = {key: settings[key] for key in settings if key not in work} | {"work": LocalWork(**work)}
        return kind(**settings)
    except TypeError as error:
        raise ConfigError(
            f"algorithm={found}: {error}. Give lr, and epochs or steps; and {', '.join(sorted(own))}."
        ) from None
