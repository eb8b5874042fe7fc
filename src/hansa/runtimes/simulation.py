"""What every runtime that holds all clients' data does around the round loop: budget, state, resumption, history."""

import secrets
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import replace

from hansa.core.data import Clients
from hansa.core.errors import ConfigError, HansaError
from hansa.core.job import Job
from hansa.core.ledger import Ledger
from hansa.core.runtime import Memories, Session, Store
from hansa.core.train import Outcome, Record, train
from hansa.privacy import check_budget
from hansa.runtimes.checkpoints import EveryRounds
from hansa.runtimes.history import History
from hansa.runtimes.memory import MemoryMemories, MemoryStore
from hansa.runtimes.observe.observer import Observers, StopTraining, observing

Opens = Callable[[Job, Clients, Memories], AbstractContextManager[Session]]


def simulate(
    open_session: Opens, job: Job, clients: Clients, *, store: Store | None = None, memories: Memories | None = None,
    observe: Observers | None = None, checkpoint_every: int = 1,
) -> History:  # fmt: skip
    """Trains to the end, or from the store's last committed round.

    Args:
      open_session: gives the runtime's session for a job without faults, as a context.
      job: checked here, with its privacy budget, before a client is opened.
      clients: every client's data, by id.
      store: where the state goes; in memory if None.
      memories: where clients' memories go; in memory if None.
      observe: called with each committed record; one observer or several, see `runtimes.observe`.
      checkpoint_every: rounds between checkpoints; a kill costs the rounds since the last one, and nothing else that
        ends a run costs any. More than 1 saves the writing between, which small rounds feel.

    Returns:
      The history; `stopped`, with the reason, if an observer ended the run, which can be resumed.

    Raises:
      JobError: the job has faults, all listed.
      BudgetExceeded: it would release more than its budget, or its population's, allows.
      TrainingFailed: a round could not be completed.
    """
    state = store if store is not None else MemoryStore()
    saved = state.load()
    job.check(len(clients))
    if callable(admit := getattr(state, "admit", None)):
        admit(job, len(clients))  # a store of many runs: its population's budget counts as well
    else:
        check_budget(job, len(clients), Ledger(tuple(state.charges())), done=saved.round if saved is not None else 0)
    run = saved.run if saved is not None else secrets.token_hex(8)
    kept = memories if memories is not None else MemoryMemories()
    plan = saved.plan if saved is not None else ""
    job = replace(job, model=job.model.planned(lambda: clients.open(clients.ids[0]), job.algorithm.work, plan))
    if checkpoint_every != 1:
        state = sparse = EveryRounds(state, kept, checkpoint_every)
        kept = sparse.held
    try:
        history = _trained(open_session, job, clients, state, kept, run, observe)
    except BaseException:
        with suppress(HansaError, OSError):  # what went wrong first is what is told
            _flush(state)
        raise
    _flush(state)
    return history


def _trained(
    open_session: Opens, job: Job, clients: Clients, state: Store, kept: Memories, run: str, observe: Observers | None
) -> History:
    """The run, followed by its observers."""
    try:
        before = tuple(Record.from_json(record) for record in state.records()) if observe is not None else ()
        with observing(observe, job, run, before) as tell, open_session(job, clients, kept) as session:
            outcome = train(job, session, state, run=run, observe=tell)
    except StopTraining as stop:
        reached = state.load()
        if reached is None:
            raise ConfigError(f"an observer stopped the run before its first round: {stop}.") from None
        records = tuple(Record.from_json(record) for record in state.records())
        return History(job, Outcome(reached, records, stopped=True), state.best(), str(stop))
    return History(job, outcome, state.best())


def _flush(state: Store) -> None:
    """Commits the rounds that are held back, if any are."""
    if isinstance(state, EveryRounds):
        state.flush()
