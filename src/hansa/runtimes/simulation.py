"""What every runtime that holds all clients' data does around the round loop: budget, state, resumption, history."""

import secrets
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

from hansa.core.data import Clients
from hansa.core.job import Job
from hansa.core.ledger import Ledger
from hansa.core.runtime import Memories, Session, Store
from hansa.core.train import Observe, train
from hansa.privacy import check_budget
from hansa.runtimes.history import History
from hansa.runtimes.memory import MemoryMemories, MemoryStore

Opens = Callable[[Job, Clients, Memories], AbstractContextManager[Session]]


def simulate(
    open_session: Opens, job: Job, clients: Clients, *, store: Store | None = None, memories: Memories | None = None,
    observe: Observe | None = None,
) -> History:  # fmt: skip
    """Trains to the end, or from the store's last committed round.

    Args:
      open_session: gives the runtime's session for a job without faults, as a context.
      job: checked here, with its privacy budget, before a client is opened.
      clients: every client's data, by id.
      store: where the state goes; in memory if None.
      memories: where clients' memories go; in memory if None.
      observe: called with each committed record.

    Raises:
      JobError: the job has faults, all listed.
      BudgetExceeded: it would release more than its budget allows.
      TrainingFailed: a round could not be completed.
    """
    state = store if store is not None else MemoryStore()
    saved = state.load()
    job.check(len(clients))
    check_budget(job, len(clients), Ledger(tuple(state.charges())), done=saved.round if saved is not None else 0)
    run = saved.run if saved is not None else secrets.token_hex(8)
    kept = memories if memories is not None else MemoryMemories()
    plan = saved.plan if saved is not None else ""
    job = replace(job, model=job.model.planned(lambda: clients.open(clients.ids[0]), job.algorithm.work, plan))
    with open_session(job, clients, kept) as session:
        outcome = train(job, session, state, run=run, observe=observe)
    return History(job, outcome, state.best())
