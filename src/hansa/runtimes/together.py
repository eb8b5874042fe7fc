"""Many clients' training handed to their model at once, beneath algorithms that each see one client.

    perform(job, task, …) ─► Algorithm.train ─► Together.fit      first time: what is asked is noted, and it stops there
    all of them           ─► Model.fit_cohort
    perform(job, task, …) ─► Algorithm.train ─► Together.fit      second time: gives what was found

`perform` is pure, so it may be begun twice. A further `fit` of the same task (an algorithm that trains twice) goes to
the model alone.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from hansa.core.model import Fit, LocalWork, Metrics, Model, Role
from hansa.core.tensors import Shapes, Tensors

RESULT_BYTES = 1 << 30  # of models trained together that wait for their turn


class Asked(BaseException):
    """Carries what `fit` was asked, out through an algorithm, which does not handle it."""

    def __init__(self, params: Tensors, data: Any, work: LocalWork, rng: np.random.Generator) -> None:
        super().__init__()
        self.params, self.data, self.work, self.rng = params, data, work, rng


class Found(NamedTuple):
    """What one client's training gave, and the state of its generator after it."""

    fit: Fit
    drawn: Mapping[str, Any]


class Early(NamedTuple):
    """What was found for a task before its turn came: its data, already opened, and its share of the seconds."""

    data: Any = None
    found: Found | None = None
    seconds: float = 0.0


class Together(Model):
    """A model whose `fit` can be answered from outside; all else is the model's own."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.metrics, self.clips_records = model.metrics, model.clips_records
        self._noting = False
        self._found: Found | None = None

    def fit_all(self, begun: Mapping[str, Callable[[], Any]]) -> dict[str, Early]:
        """Trains all that tasks will ask for at once.

        Args:
          begun: by the key of a task, what opens its data and begins it.

        Returns:
          What was found; nothing for tasks that do not train, or if it fails: what is raised here is raised again in
          the task's own turn, and told there.
        """
        began, asked = time.perf_counter(), dict[str, Asked]()
        for key, begin in begun.items():
            if (one := self._ask(begin)) is not None:
                asked[key] = one
        with suppress(Exception):
            rngs = [one.rng for one in asked.values()]
            fits = self._model.fit_cohort(
                [one.params for one in asked.values()], [one.data for one in asked.values()],
                [one.work for one in asked.values()], rngs,
            )  # fmt: skip
            found = [Found(fit, rng.bit_generator.state) for fit, rng in zip(fits, rngs, strict=True)]
            seconds = (time.perf_counter() - began) / max(1, len(found))
            return {key: Early(one.data, fit, seconds) for (key, one), fit in zip(asked.items(), found, strict=True)}
        return {}

    def _ask(self, begin: Callable[[], Any]) -> Asked | None:
        """What a task asks of `fit`; None if it ends, or fails, before: then it will do so again."""
        self._noting = True
        try:
            begin()
        except Asked as asked:
            return asked
        except Exception:
            return None
        finally:
            self._noting = False
        return None

    def answer(self, found: Found | None) -> None:
        """The next `fit` gives this, if anything."""
        self._found = found

    def fit(self, params: Tensors, data: Any, work: LocalWork, rng: np.random.Generator) -> Fit:
        """What was found, or what the model gives."""
        if self._noting:
            raise Asked(params, data, work, rng)
        found, self._found = self._found, None
        if found is None:
            return self._model.fit(params, data, work, rng)
        rng.bit_generator.state = found.drawn
        return found.fit

    # -- the model's own

    def init(self, seed: int) -> Tensors:
        """The model's."""
        return self._model.init(seed)

    def evaluate(self, params: Tensors, data: Any) -> Metrics:
        """The model's."""
        return self._model.evaluate(params, data)

    def roles(self) -> Mapping[str, Role]:
        """The model's."""
        return self._model.roles()

    def shapes(self) -> Shapes:
        """The model's."""
        return self._model.shapes()

    def plan(self) -> str:
        """The model's."""
        return self._model.plan()

    def finish(self, params: Tensors) -> Any:
        """The model's."""
        return self._model.finish(params)
