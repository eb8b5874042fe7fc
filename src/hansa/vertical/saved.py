"""One party's part of a model that several owners have, as a file of its own, and its side of predicting with it.

    save_part(fitted, "shop-part.json", protocol="aby3")        at each party, after the training
    load_part("shop-part.json").over(mesh)                      its `Predict`, for `serve` or `Asker`

The file is JSON, readable by its owner alone: coefficients, splits and leaves are what the other owners may not see.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hansa.algorithms.trees.tree import Boosted
from hansa.core.errors import CorruptFile, HansaError, NotFound, require
from hansa.core.runtime import Mesh
from hansa.crypto.private_file import write_atomically
from hansa.vertical.predict import Predict
from hansa.vertical.table import AlignedTable

if TYPE_CHECKING:
    from hansa.vertical.glm import FittedGlm

_LINEAR, _TREES = "generalised linear model", "boosted trees"
_ARRAYS = ("mean", "scale", "coefficients", "intercept", "standard_errors")


@dataclass(frozen=True)
class SavedPart:
    """What a file holds.

    Args:
      model: this party's part.
      protocol: of the shares that it predicts on; empty for trees over encrypted gradients, which need none.
    """

    model: "Boosted | FittedGlm"
    protocol: str = ""

    def over(self, mesh: Mesh) -> Predict:
        """This party's side of predicting; every party of the training makes its own, at the same time.

        Raises:
          ConfigError: the parties' protocols differ, or it is for another number of parties.
        """
        if not self.protocol:
            return self._over_plain(mesh)
        from hansa.mpc.session import Session

        session = Session(mesh, self.protocol)
        if not isinstance(self.model, Boosted):
            fitted = self.model
            return lambda table: fitted.predict(session, table)
        from hansa.vertical.boosting.shared import predict_shared

        part = self.model
        return lambda table: predict_shared(session, part, table)

    def _over_plain(self, mesh: Mesh) -> Predict:
        from hansa.vertical.boosting import predict

        part = self.model
        assert isinstance(part, Boosted)

        def answered(table: AlignedTable | None) -> Any:
            require(table is not None, f"'{mesh.me}' has a part of the trees and no table: give its people.")
            assert table is not None
            return predict(mesh, part, table)

        return answered


def save_part(part: "Boosted | FittedGlm", path: str | Path, *, protocol: str = "") -> None:
    """Writes one party's part of a model.

    Args:
      part: what `fit` gave at this party: of `Glm`, `EncryptedBoosting` or `SharedBoosting`.
      path: of the file, which appears whole or not at all.
      protocol: of the session that it was trained in and predicts in; none for `EncryptedBoosting`.

    Raises:
      ConfigError: a linear model without a protocol, or with columns of owners that do not compute.
    """
    if isinstance(part, Boosted):
        body: dict[str, Any] = {"kind": _TREES, "model": json.loads(part.to_json())}
    else:
        require(bool(protocol), "a linear model predicts on shares: give the session's protocol, as protocol='aby3'.")
        fault = f"others={sorted(part.others)} are shares, which `session.save` writes: this file cannot hold them."
        require(not part.others, fault)
        model = {name: _plain(getattr(part, name)) for name in vars(part) if name != "others"}
        body = {"kind": _LINEAR, "model": {**model, "outputs": part.coefficients.shape[1]}}
    write_atomically(Path(path), json.dumps({**body, "protocol": protocol}, allow_nan=False).encode(), mode=0o600)


def load_part(path: str | Path) -> SavedPart:
    """Reads what `save_part` wrote.

    Raises:
      NotFound: there is no such file.
      CorruptFile: it holds something else.
    """
    try:
        body = json.loads(Path(path).read_text(encoding="utf-8"))
        protocol, kind = body["protocol"], body["kind"]
        if not isinstance(protocol, str) or kind not in (_LINEAR, _TREES):
            raise ValueError(f"it is of the kind {kind!r}")
        model = Boosted.from_json(json.dumps(body["model"])) if kind == _TREES else _linear(body["model"])
    except FileNotFoundError:
        raise NotFound(f"{path} does not exist: `save_part` writes it after the training.") from None
    except (ValueError, KeyError, TypeError, UnicodeDecodeError, HansaError) as error:
        raise CorruptFile(f"{path} is no part of a model ({error}): save it again after the training.") from None
    return SavedPart(model, protocol)


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value


def _linear(body: dict[str, Any]) -> "FittedGlm":
    from hansa.vertical.glm import FittedGlm, Glm

    arrays = {name: None if body[name] is None else np.array(body[name], np.float64) for name in _ARRAYS}
    names = tuple(map(str, body["names"]))
    arrays["coefficients"] = np.array(body["coefficients"], np.float64).reshape(len(names), int(body["outputs"]))
    if any(array is not None and not np.isfinite(array).all() for array in arrays.values()):
        raise ValueError("it has numbers that are not finite")
    everyone = body["everyone"]
    given: dict[str, Any] = {
        **arrays, "names": names, "classes": tuple(body["classes"]), "glm": Glm(**body["glm"]),
        "everyone": None if everyone is None else {name: np.array(each) for name, each in everyone.items()},
    }  # fmt: skip
    return FittedGlm(owner=str(body["owner"]), label_owner=str(body["label_owner"]), **given)
