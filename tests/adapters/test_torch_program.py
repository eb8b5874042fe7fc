"""Networks saved without their source."""

import sys
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from hansa.adapters.torch import TorchModel  # noqa: E402
from hansa.core.data import Dataset  # noqa: E402
from hansa.core.errors import ConfigError, CorruptFile  # noqa: E402
from hansa.core.job import canonical  # noqa: E402
from hansa.core.model import LocalWork, value  # noqa: E402
from hansa.runtimes.forms import rebuild  # noqa: E402


def net():
    return nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 3))


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "net.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(net()), str(path))
    return path


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 51)
    return Dataset(x=rng.normal(size=(51, 12)) + 2 * np.eye(3, 12)[y], y=y)


def test_a_saved_program_trains_without_its_source(archive, data):
    model = TorchModel.exported(archive, F.cross_entropy)
    start = model.init(0)
    assert start == model.init(7)  # the weights that were saved
    assert set(start) == set(net().state_dict())
    work = LocalWork(lr=0.1, epochs=10, batch_size=10)  # the last batch is one example: no step
    found = [model.fit(start, data, work, np.random.default_rng(1)) for _ in range(2)]
    assert found[0].params == found[1].params and found[0].steps == 50
    before, after = (value(model.evaluate(params, data)) for params in (start, found[0].params))
    assert after["loss"] < before["loss"] / 2 and after["accuracy"] > 0.8
    assert not model.finish(start).training


def test_reading_a_program_uses_no_pickle_of_python(archive, monkeypatch):
    import pickle

    def refuse(*_args, **_kwargs):
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    sys.modules.pop("hansa_never_imported", None)
    TorchModel.exported(archive, F.cross_entropy).init(0)


def test_a_program_is_known_by_its_hash(archive, tmp_path, monkeypatch):
    model = TorchModel.exported(archive, F.cross_entropy)
    again = rebuild(canonical(model))
    assert again == model and again.init(0) == model.init(0)
    # A worker has the same file elsewhere.
    there = tmp_path / "there"
    there.mkdir()
    archive.rename(there / archive.name)
    with pytest.raises(ConfigError, match="no file '.*net.pt' here.*HANSA_PROGRAMS"):
        again.init(0)
    monkeypatch.setenv("HANSA_PROGRAMS", str(there))
    again.init(0)
    # Another file of that name is refused.
    (there / archive.name).write_bytes(b"something else")
    with pytest.raises(CorruptFile, match="has the SHA-256"):
        again.init(0)


def test_a_file_that_is_no_program_is_refused(tmp_path):
    path = tmp_path / "net.pt"
    path.write_bytes(b"no archive")
    with pytest.raises(CorruptFile, match="is no TorchScript archive"):
        TorchModel.exported(path, F.cross_entropy).init(0)
    with pytest.raises(ConfigError, match="cannot be read"):
        TorchModel.exported(tmp_path / "absent.pt", F.cross_entropy)
