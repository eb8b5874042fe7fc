"""What the parties of a fit say before it: sizes alone."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from hansa.core.errors import ConfigError, require
from hansa.mpc.session import Session
from hansa.runtimes.mesh.messages import told
from hansa.vertical.glm.part import Part


@dataclass(frozen=True)
class Meeting:
    """What all parties know of each other: sizes alone."""

    owners: tuple[str, ...]
    counts: tuple[int, ...]  # of columns in X, the label owner's column of ones included
    label_owner: str
    outputs: int
    rows: int
    alignment: str
    weighted: bool

    @classmethod
    def hold(cls, session: Session, mine: Part) -> "Meeting":
        width = 0 if mine.x is None else mine.x.shape[1]
        outputs = 0 if mine.y is None else mine.y.shape[1]
        head = [width, mine.rows, mine.alignment.hex(), outputs, mine.weight is not None]
        heads = told(session.mesh, "columns", head, tuple[int, int, str, int, bool])
        owners = tuple(name for name in session.names if heads[name][0])
        labelled = [name for name in owners if heads[name][3]]
        if len(labelled) != 1:
            fault = f"the owners {labelled} all gave a label" if labelled else "nobody gave a label"
            raise ConfigError(f"{fault}: exactly one owner names its column of labels.")
        first = heads[labelled[0]]
        apart = [name for name in owners if heads[name][1:3] != first[1:3]]
        if apart:
            raise ConfigError(f"the tables of {[labelled[0], *apart]} are of different alignments: align them again.")
        counts = tuple(heads[name][0] for name in owners)
        if sum(counts) < 2:
            raise ConfigError("nobody gave a column besides the label: there is nothing to learn from.")
        return cls(owners, counts, labelled[0], first[3], first[1], first[2], first[4])

    def joined_by(self, others: Mapping[str, torch.Tensor]) -> "Meeting":
        """With the columns of owners that do not compute after those of the parties."""
        for name, columns in others.items():
            fits = columns.ndim == 2 and columns.shape[0] == self.rows
            require(fits, f"others['{name}'] has shape {tuple(columns.shape)}: the tables have {self.rows} rows.")
            require(name not in self.owners, f"others['{name}']: '{name}' gives a table of its own.")
        counts = (*self.counts, *(columns.shape[1] for columns in others.values()))
        return replace(self, owners=(*self.owners, *others), counts=counts)

    def place(self, owner: str) -> slice:
        """Of an owner's coefficients."""
        begin = sum(self.counts[: self.owners.index(owner)])
        return slice(begin, begin + self.counts[self.owners.index(owner)])

    @property
    def width(self) -> int:
        """Of X."""
        return sum(self.counts)

    @property
    def penalised(self) -> torch.Tensor:
        """1 for each coefficient but the intercept, of shape (width, 1)."""
        mask = torch.ones(self.width, 1)
        mask[self.place(self.label_owner).start] = 0
        return mask

    def placed(self, start: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
        """Coefficients of zero but for the intercepts, at the label owner."""
        if start is None:
            return None
        beta = np.zeros((self.width, self.outputs))
        beta[self.place(self.label_owner).start] = start
        return beta
