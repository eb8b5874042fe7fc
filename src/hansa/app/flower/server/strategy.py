"""`FedAvg` with the arguments that Flower 0.17 gives it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hansa.app.flower.weights import Scalar, Weights
from hansa.core.errors import ConfigError

Evaluated = tuple[float, Mapping[str, Scalar]] | None


@dataclass(kw_only=True)
class FedAvg:
    """Averaging by numbers of examples.

    Args:
      fraction_fit: share of the clients that fit in a round.
      fraction_eval: share of them that evaluate after it, where there is no `eval_fn`.
      min_fit_clients, min_eval_clients: at least so many, whatever the shares.
      min_available_clients: training begins when so many are there.
      eval_fn: parameters -> (loss, metrics), measured at the server after each round.
      initial_parameters: the first ones; else one client is asked for its own.
      on_fit_config_fn, on_evaluate_config_fn: must be None.

    The number of clients is that of `min_available_clients`; who comes later is asked in later rounds.
    """

    fraction_fit: float = 0.1
    fraction_eval: float = 0.1
    min_fit_clients: int = 2
    min_eval_clients: int = 2
    min_available_clients: int = 2
    eval_fn: Callable[[Any], Evaluated] | None = None
    initial_parameters: Weights | None = None
    on_fit_config_fn: None = None
    on_evaluate_config_fn: None = None

    def __post_init__(self) -> None:
        for name in ("on_fit_config_fn", "on_evaluate_config_fn"):
            if getattr(self, name) is not None:
                raise ConfigError(f"{name}: no configuration is sent to clients here, give the client what it needs.")
        for name in ("fraction_fit", "fraction_eval"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)}: a share lies between 0 and 1.")
        for name in ("min_fit_clients", "min_available_clients"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: at least 1 is needed.")
        if self.min_fit_clients > self.min_available_clients:
            raise ConfigError(
                f"min_fit_clients={self.min_fit_clients} > min_available_clients={self.min_available_clients}: "
                "raise the second."
            )

    @property
    def fitting(self) -> int:
        """Clients that fit in a round."""
        return max(self.min_fit_clients, int(self.fraction_fit * self.min_available_clients))

    @property
    def evaluating(self) -> int:
        """Clients that evaluate after it; none where the server does."""
        if self.eval_fn is not None or not self.fraction_eval:
            return 0
        most = max(self.min_eval_clients, int(self.fraction_eval * self.min_available_clients))
        return min(most, self.min_available_clients)
