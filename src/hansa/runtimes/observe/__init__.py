"""What follows a run while it trains: logs, boards, a progress bar, early stopping; one file each.

    hansa.train(job, clients, observe=[CsvLog("rounds.csv"), EarlyStopping("loss", patience=5)])

An observer is any callable that takes a `Record`, or an `Observer` of `observer.py`, which also sees the beginning and
the end. It is called after its round was committed, so whatever it does, the round is not lost.
"""

from hansa.runtimes.observe.early_stopping import EarlyStopping
from hansa.runtimes.observe.mlflow import MLflow
from hansa.runtimes.observe.observer import Observer, StopTraining
from hansa.runtimes.observe.progress import Progress
from hansa.runtimes.observe.table import CsvLog, ParquetLog
from hansa.runtimes.observe.target import Target
from hansa.runtimes.observe.tensorboard import TensorBoard

__all__ = [
    "CsvLog", "EarlyStopping", "MLflow", "Observer", "ParquetLog", "Progress", "StopTraining", "Target", "TensorBoard",
]  # fmt: skip
