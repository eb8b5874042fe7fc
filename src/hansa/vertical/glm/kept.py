"""Shares of the coefficients on disk, from which a fit that lost a party goes on."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from hansa.core.errors import ConfigError
from hansa.mpc.files import place_of
from hansa.mpc.secret import SecretTensor
from hansa.mpc.session import Session
from hansa.runtimes.mesh.messages import told


@dataclass(frozen=True)
class Kept:
    """This party's shares of the coefficients after the last two epochs, so that a lost party costs one at most."""

    session: Session
    folder: Path

    @classmethod
    def of(cls, session: Session, folder: Path | None, run: str) -> "Kept | None":
        """In a folder of its own for each kind of run; None if no party keeps anything."""
        keeps = told(session.mesh, "keeps", folder is not None, bool)
        if len(set(keeps.values())) > 1:
            without = [name for name in session.names if not keeps[name]]
            raise ConfigError(f"the parties {without} gave no folder to keep shares in: all give one, or none does.")
        return None if folder is None else cls(session, folder / hashlib.sha256(run.encode()).hexdigest()[:16])

    def newest(self) -> tuple[int, torch.Tensor | None]:
        """The epochs that all parties have behind them, and the secret state after them."""
        folders = [path for path in self.folder.glob("epoch-*") if Path(place_of(str(path), self.session.me)).exists()]
        mine = [int(path.name.removeprefix("epoch-")) for path in folders]
        common = set(mine).intersection(*told(self.session.mesh, "epochs", mine, list[int]).values())
        if not common:
            return 0, None
        state = self.session.load(str(self.folder / f"epoch-{max(common)}"))
        assert isinstance(state, SecretTensor)
        return max(common), state

    def save(self, epochs: int, state: torch.Tensor) -> None:
        """After so many epochs; what is two epochs older goes."""
        self.session.save(state, str(self.folder / f"epoch-{epochs}"))
        shutil.rmtree(self.folder / f"epoch-{epochs - 2}", ignore_errors=True)

    def forget(self) -> None:
        """Nothing is left of a fit that came to its end."""
        shutil.rmtree(self.folder, ignore_errors=True)
