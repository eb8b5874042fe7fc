"""Halves as files, and checkpoints that all parties can go on from: the safetensors layout, nothing unpickled.

Each party keeps its last two checkpoints. No party can be more than one batch ahead of another, so the last one that
all have is among them; which it is they tell each other when they start.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hansa.core.checkpoint import dump, open_bytes
from hansa.core.errors import CorruptFile, NotFound, StateMismatch
from hansa.core.runtime import Mesh
from hansa.core.tensors import Tensors
from hansa.crypto.private_file import write_atomically
from hansa.runtimes.mesh.messages import told
from hansa.vertical.split.plan import SplitLearning

_KEPT = 2
_FREE = ("epochs", "checkpoint_every")  # of the settings, what may be another when a run goes on


@dataclass(frozen=True, order=True)
class Position:
    """How far a run is: batches of an epoch that are done, and the loss summed over their rows."""

    epoch: int = 0
    batch: int = 0
    loss: float = 0.0

    @property
    def key(self) -> tuple[int, int]:
        """What all parties name it by."""
        return self.epoch, self.batch


class States:
    """One party's checkpoints in a folder."""

    def __init__(self, folder: str | Path, me: str) -> None:
        self._folder, self._me = Path(folder), me
        self._folder.mkdir(parents=True, exist_ok=True)

    def resume(
        self, mesh: Mesh, plan: SplitLearning, rows: int, halves: nn.Module, optimiser: Any, labels: Any
    ) -> tuple[Position, Any]:
        """Loads the last checkpoint that all parties have, or makes the first one.

        Raises:
          StateMismatch: checkpoints are of other settings, or none is held by all.
        """
        held = sorted(self._held())
        said = told(mesh, "checkpoints", held, list[tuple[int, int]], plan.parties)
        whose = {name: [(epoch, batch) for epoch, batch in keys] for name, keys in said.items()}
        common = set(held).intersection(*whose.values())
        if not any(whose.values()):
            start = Position()
            self.commit(start, halves, optimiser, labels, plan, rows)
            return start, labels
        if not common:
            listed = "; ".join(f"{name} {keys or 'none'}" for name, keys in sorted(whose.items()))
            raise StateMismatch(
                f"no checkpoint (epoch, batch) is held by all: {listed}. Give each its folder of this run, "
                "or all empty ones."
            )
        return self._load(self._path(max(common)), plan, rows, halves, optimiser, labels)

    def commit(
        self, at: Position, halves: nn.Module, optimiser: Any, labels: Any, plan: SplitLearning, rows: int
    ) -> None:
        """Writes a checkpoint, whole or not at all, and forgets those before the last two."""
        arrays, numbers = _optimiser_state(optimiser)
        parts = {"halves": _arrays(halves), "optimiser": Tensors(arrays)}
        if labels is not None and plan.labels is not None:
            # Once randomised, always the same: a second draw would cost ε again.
            parts["labels"] = Tensors({"y": labels.numpy()})
        facts = {"position": asdict(at), "run": _fingerprint(plan, rows), "optimiser": numbers}
        write_atomically(self._path(at.key), dump(Tensors.join(**parts), {"hansa": json.dumps(facts)}), mode=0o600)
        for key in sorted(self._held())[:-_KEPT]:
            self._path(key).unlink(missing_ok=True)

    def _load(
        self, path: Path, plan: SplitLearning, rows: int, halves: nn.Module, optimiser: Any, labels: Any
    ) -> tuple[Position, Any]:
        tensors, metadata = open_bytes(path.read_bytes())
        try:
            facts = json.loads(metadata["hansa"])
            position, run, numbers = Position(**facts["position"]), facts["run"], facts["optimiser"]
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptFile(f"{path} is no checkpoint of split learning: {error!r}.") from None
        if run != _fingerprint(plan, rows):
            raise StateMismatch(f"{path} is of a run with other settings or rows: state those, or take another folder.")
        _into(halves, tensors.part("halves"), path)
        if optimiser is not None:
            _restore(optimiser, tensors.part("optimiser"), numbers)
        kept = tensors.part("labels")
        return position, torch.from_numpy(np.array(kept["y"])) if "y" in kept else labels

    def _held(self) -> list[tuple[int, int]]:
        pattern = re.compile(re.escape(self._me) + r"-(\d+)-(\d+)\.safetensors")
        found = (pattern.fullmatch(path.name) for path in self._folder.iterdir())
        return [(int(each[1]), int(each[2])) for each in found if each]

    def _path(self, key: tuple[int, int]) -> Path:
        return self._folder / f"{self._me}-{key[0]:05d}-{key[1]:07d}.safetensors"


def save_half(path: str | Path, halves: nn.Module, plan: SplitLearning) -> None:
    """One party's modules, named by their place, with the plan they were trained under."""
    write_atomically(Path(path), dump(_arrays(halves), {"hansa": json.dumps({"split": plan.settings()})}), mode=0o600)


def load_half(path: str | Path, halves: nn.Module) -> None:
    """Puts saved tensors into modules of the same shapes; CorruptFile, StateMismatch or NotFound otherwise."""
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise NotFound(f"{path} does not exist: save this party's halves first.") from None
    tensors, _ = open_bytes(content)
    _into(halves, tensors, path)


def _arrays(module: nn.Module) -> Tensors:
    return Tensors({name: tensor.detach().cpu().numpy() for name, tensor in module.state_dict().items()})


def _into(module: nn.Module, tensors: Tensors, path: str | Path) -> None:
    state = {name: torch.from_numpy(np.array(tensors[name])) for name in tensors}
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise StateMismatch(f"{path} is of other modules: {error}") from None


def _optimiser_state(optimiser: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors by `parameter/name`, and what is numbers: the state's, and the settings that a schedule may change."""
    if optimiser is None:
        return {}, {}
    found = optimiser.state_dict()
    entries = {f"{at}/{name}": value for at, state in found["state"].items() for name, value in state.items()}
    arrays = {name: value.cpu().numpy() for name, value in entries.items() if isinstance(value, torch.Tensor)}
    plain = {name: value for name, value in entries.items() if isinstance(value, int | float)}
    groups = [
        {name: each for name, each in group.items() if isinstance(each, int | float)} for group in found["param_groups"]
    ]
    return arrays, {"state": plain, "groups": groups}


def _restore(optimiser: Any, arrays: Tensors, numbers: dict[str, Any]) -> None:
    whole = optimiser.state_dict()
    values = {name: torch.from_numpy(np.array(arrays[name])) for name in arrays} | numbers["state"]
    state: dict[int, dict[str, Any]] = {}
    for name, value in values.items():
        at, entry = name.split("/", 1)
        state.setdefault(int(at), {})[entry] = value
    groups = [{**group, **kept} for group, kept in zip(whole["param_groups"], numbers["groups"], strict=True)]
    optimiser.load_state_dict({"state": state, "param_groups": groups})


def _fingerprint(plan: SplitLearning, rows: int) -> str:
    settings = {name: value for name, value in plan.settings().items() if name not in _FREE}
    return hashlib.sha256(json.dumps([settings, rows], sort_keys=True).encode()).hexdigest()
