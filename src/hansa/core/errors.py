"""Every exception Hansa raises, in one tree, each with its documented exit code.

    HansaError                      1
    ├── JobError                   10   the job contradicts itself (lists every fault)
    ├── ConfigError                11   an option, key or file the caller gave
    ├── MissingExtra               12   a library that is not installed
    ├── DataError                  13   a data set or population
    ├── TensorMismatch             14   names, shapes or dtypes that do not meet
    ├── CorruptFile                15   a checkpoint or message that cannot be read
    ├── UpdateRejected             16   a contribution that may not be counted
    ├── TrainingFailed             17   a round that cannot be completed
    ├── StateMismatch              18   a job that changed under a running state
    ├── NotFound                   19   a run, client or file that does not exist
    ├── IdentityError              20   a certificate, key or role
    ├── Refused                    21   a peer said no, with its reason
    ├── BundleError                22   a job archive that is damaged, unsigned or incomplete
    ├── PolicyError                23   the data owner's policy does not allow this
    ├── Unreachable                24   nobody answers
    ├── StorageFull                25   the disk or quota
    ├── ProtocolError              26   a peer's garbage
    ├── BudgetExceeded             27   a privacy budget that is spent
    ├── SecretRoundVoid            28   a secure round that revealed nothing
    └── SecretError                29   a program on shares that would open a secret

Each message names the thing, the value, the expectation and the remedy. No message holds a key, a token or an example.
"""

from collections.abc import Sequence
from typing import ClassVar


class HansaError(Exception):
    """Base of all errors Hansa raises on purpose; `exit_code` is what the command line returns."""

    exit_code: ClassVar[int] = 1


class JobError(HansaError):
    """A job that cannot run. `faults` holds every one of them, each with its remedy."""

    exit_code = 10

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        count = f"{len(self.faults)} fault" + ("s" if len(self.faults) > 1 else "")
        super().__init__(f"the job has {count}:\n" + "\n".join(f"  - {fault}" for fault in self.faults))


class ConfigError(HansaError):
    """An option, a key or a file that the caller gave is wrong."""

    exit_code = 11


def require(condition: bool, message: str) -> None:
    """Raises ConfigError with this message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


class MissingExtra(HansaError):
    """A library that this part needs is not installed."""

    exit_code = 12

    def __init__(self, part: str, library: str, extra: str) -> None:
        super().__init__(f"{part} needs {library}, which is not installed: pip install 'hansa[{extra}]'")


class DataError(HansaError):
    """A data set or a population is empty, misshapen or missing."""

    exit_code = 13


class TensorMismatch(HansaError):
    """Two trees of tensors do not have equal names, shapes or dtypes."""

    exit_code = 14


class CorruptFile(HansaError):
    """A checkpoint, message or state file cannot be read."""

    exit_code = 15


class UpdateRejected(HansaError):
    """A contribution that may not be counted: not finite, wrong weight, foreign names."""

    exit_code = 16


class TrainingFailed(HansaError):
    """A round cannot be completed; the state is that of the last committed round."""

    exit_code = 17


class StateMismatch(HansaError):
    """The state on disk belongs to another job than the one given."""

    exit_code = 18


class NotFound(HansaError):
    """A run, client or file that does not exist."""

    exit_code = 19


class IdentityError(HansaError):
    """A certificate, key or role is missing, expired, revoked or wrong."""

    exit_code = 20


class Refused(HansaError):
    """A peer refused us and said why."""

    exit_code = 21


class BundleError(HansaError):
    """A job archive is damaged, unsigned, of an unknown signer or incomplete."""

    exit_code = 22


class PolicyError(HansaError):
    """The data owner's policy does not allow what was asked."""

    exit_code = 23


class Unreachable(HansaError):
    """A server or peer does not answer."""

    exit_code = 24


class StorageFull(HansaError):
    """The disk or quota is full; nothing already committed is lost."""

    exit_code = 25


class ProtocolError(HansaError):
    """A peer sent what the protocol does not allow."""

    exit_code = 26


class BudgetExceeded(HansaError):
    """The job would spend more privacy than its population has left."""

    exit_code = 27


class SecretRoundVoid(HansaError):
    """A secure round ended below its threshold; nothing of it was revealed."""

    exit_code = 28


class SecretError(HansaError):
    """A program on shares would open a secret, or asks for an operation that has no protocol."""

    exit_code = 29
