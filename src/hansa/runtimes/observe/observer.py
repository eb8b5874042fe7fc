"""The contract of an observer, and how several of them follow one run.

    begin(job, run, records so far) ─► record ─► record ─► … ─► end(reason)

A run that is resumed begins again with the records it has committed, so an observer's state is always that of an
uninterrupted run: nothing is logged twice and nothing is left out.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from hansa.core.errors import ConfigError
from hansa.core.job import Job
from hansa.core.train import Observe, Record


class StopTraining(Exception):
    """Raised by an observer: the run ends after the round just committed, as stopped, for this reason."""


class Observer:
    """Sees a run from its beginning to its end; a subclass overrides what it needs.

    class Loud(Observer):
        def __call__(self, record):
            print(record.round, record.central)
    """

    def begin(self, job: Job, run: str, records: Sequence[Record]) -> None:
        """Before the first round of this call.

        Args:
          job: what runs.
          run: its random id; that of the run it goes on with, if there is one.
          records: of the rounds committed before; empty for a new run.

        Raises:
          StopTraining: the run is to end here.
        """

    def __call__(self, record: Record) -> None:
        """After each committed round; may raise StopTraining."""

    def end(self, reason: str) -> None:
        """After the last round of this call, also when it failed; `reason` is empty if the job came to its end."""


Observers = Observe | Sequence[Observe]


@contextmanager
def observing(observe: Observers | None, job: Job, run: str, records: Sequence[Record]) -> Iterator[Observe]:
    """One callable for all of a run's observers, begun and ended around the block.

    Every observer sees every round, also where one of them stops the run or fails.

    Raises:
      ConfigError: something among them cannot be called.
    """
    every = _flat(observe)
    whole = [observer for observer in every if isinstance(observer, Observer)]
    reason = ""

    def tell(record: Record) -> None:
        _each([lambda o=o: o(record) for o in every])  # type: ignore[misc]

    try:
        _each([lambda o=o: o.begin(job, run, records) for o in whole])  # type: ignore[misc]
        yield tell
    except StopTraining as stop:
        reason = str(stop)
        raise
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"
        raise
    finally:
        _each([lambda o=o: o.end(reason) for o in whole])  # type: ignore[misc]


def _flat(observe: Observers | None) -> list[Observe]:
    """The observers as a list."""
    if observe is None:
        return []
    several: list[Observe] = list(observe) if isinstance(observe, Sequence) else [observe]
    for one in several:
        if not callable(one) or isinstance(one, type):
            raise ConfigError(f"observe={one!r}: an observer is called with each record; give an object, as in print.")
    return several


def _each(calls: Sequence[Callable[[], None]]) -> None:
    """Calls all of them, then raises what the first failed with; a failure goes before a wish to stop."""
    stop: StopTraining | None = None
    failed: BaseException | None = None
    for call in calls:
        try:
            call()
        except StopTraining as wish:
            stop = stop or wish
        except Exception as error:
            failed = failed or error
    if failed is not None:
        raise failed
    if stop is not None:
        raise stop
