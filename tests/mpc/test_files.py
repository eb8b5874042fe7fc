"""Shares as files: what goes in comes out, a file alone says nothing, and what does not belong together is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn

from hansa.core.checkpoint import dump, open_bytes
from hansa.core.errors import ConfigError, CorruptFile, DataError, HansaError, NotFound, TensorMismatch
from hansa.core.tensors import Tensors
from hansa.mpc import SecretTensor, Session, load_shares, local, reveal_shares, save_shares
from hansa.mpc.files import place_of

PROTOCOLS = {"plain": 1, "aby3": 3, "pond": 3, "two_party": 2}
VALUES = torch.tensor([[1.5, -2.25, 1e4], [0.0, 2**-16, -3e-5]])


def names(protocol: str) -> list[str]:
    return [f"party-{at}" for at in range(PROTOCOLS[protocol])]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@settings(max_examples=20, deadline=None)
@given(value=arrays.arrays(np.float64, arrays.array_shapes(min_dims=0, max_dims=3), elements=st.floats(-1e9, 1e9)))
def test_what_is_shared_is_revealed(tmp_path_factory: pytest.TempPathFactory, protocol: str, value: Any) -> None:
    url = str(tmp_path_factory.mktemp("shares"))
    save_shares({"x": value, "n": np.arange(3), "b": np.array([True, False])}, url, names(protocol), protocol=protocol)
    found, header = reveal_shares(url)
    assert found["x"].shape == value.shape and header.protocol == protocol
    assert np.abs(found["x"].numpy() - value).max(initial=0) <= 2**-17
    assert found["n"].tolist() == [0, 1, 2] and found["b"].tolist() == [True, False]


def test_each_file_alone_is_uniform_whatever_was_shared(tmp_path: Path) -> None:
    save_shares({"x": torch.zeros(20_000)}, str(tmp_path), names("aby3"))
    for name in names("aby3"):
        for part in load_shares(str(tmp_path), name).parts["x"]:
            counts = np.bincount(part.view(np.uint8), minlength=256)
            expected = part.nbytes / 256
            chi = float(((counts - expected) ** 2 / expected).sum())
            assert 255 - 6 * 22.6 < chi < 255 + 6 * 22.6  # 6 standard deviations of χ² with 255 degrees of freedom


def test_a_file_on_this_machine_is_its_owners_alone(tmp_path: Path) -> None:
    save_shares({"x": VALUES}, str(tmp_path), names("aby3"))
    assert {place.stat().st_mode & 0o777 for place in tmp_path.iterdir()} == {0o600}


def test_what_a_session_saves_is_uniform_too(tmp_path: Path) -> None:
    def program(session: Session) -> None:
        session.save({"input": session.share(torch.zeros(20_000), session.names[0]), "public": torch.zeros(20_000)},
                     str(tmp_path))  # fmt: skip

    for protocol in ("aby3", "pond", "two_party"):
        local(program, protocol)
        for name in names(protocol):
            for parts in load_shares(str(tmp_path), name).parts.values():
                for part in parts:
                    counts = np.bincount(part.view(np.uint8), minlength=256)
                    assert ((counts - 625) ** 2 / 625).sum() < 255 + 6 * 22.6, (protocol, name)


def test_two_files_of_aby3_are_enough_and_one_is_not(tmp_path: Path) -> None:
    save_shares({"x": VALUES}, str(tmp_path), names("aby3"))
    first, second, _ = (str(tmp_path / f"{name}.safetensors") for name in names("aby3"))
    assert torch.allclose(reveal_shares(first, second)[0]["x"], VALUES, atol=2**-16)
    with pytest.raises(DataError, match="'?party-0'? are too few: add that of party-1 or party-2"):
        reveal_shares(first)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_session_loads_computes_saves_and_the_result_is_revealed_without_it(tmp_path: Path, protocol: str) -> None:
    save_shares({"table": VALUES}, f"{tmp_path}/in", names(protocol), protocol=protocol, columns={"table": "abc"})

    def program(session: Session) -> tuple[int, ...]:
        table = session.load(f"{tmp_path}/in", columns=["c", "a"])
        assert isinstance(table, SecretTensor)
        session.save({"double": table * 2, "flags": table > 1, "public": torch.arange(3)}, f"{tmp_path}/out")
        again = session.load(f"{tmp_path}/out")
        assert isinstance(again, dict)
        session.save(again["double"], f"{tmp_path}/again", columns=["c", "a"])
        return tuple(again["double"].shape)

    assert set(local(program, protocol)) == {(2, 2)}
    found, _ = reveal_shares(f"{tmp_path}/out")
    assert torch.allclose(found["double"], VALUES[:, [2, 0]] * 2, atol=1e-4)
    assert found["flags"].tolist() == (VALUES[:, [2, 0]] > 1).tolist() and found["public"].tolist() == [0, 1, 2]
    once, header = reveal_shares(f"{tmp_path}/again")
    assert torch.equal(once["table"], found["double"]) and header.tensors["table"].columns == ("c", "a")


def test_tables_of_several_owners_are_joined(tmp_path: Path) -> None:
    def shared(name: str, value: torch.Tensor, columns: str) -> str:
        save_shares({"table": value}, f"{tmp_path}/{name}", names("aby3"), columns={"table": columns})
        return f"{tmp_path}/{name}"

    left, below = shared("left", torch.ones(2, 2), "ab"), shared("below", torch.zeros(1, 2), "ab")
    right = shared("right", torch.full((2, 1), 7.0), "c")

    def program(session: Session) -> Any:
        for urls, how, message in (
            ([left, right], "rows", "different columns"),
            ([below, right], "columns", "rows must match"),
            ([left, left], "columns", "occur twice"),
            ([left, right], "ids", "choose 'rows'"),
        ):
            with pytest.raises(ConfigError, match=message):
                session.load(urls, join=how)
        with pytest.raises(ConfigError, match=r"columns=\['z'\] are not in .*it has a, b"):
            session.load(left, columns=["z"])
        wide, long = session.load([left, right], join="columns"), session.load([left, below])
        return session.reveal([wide, long])

    wide, long = local(program)[0]
    assert wide.tolist() == [[1, 1, 7], [1, 1, 7]] and long.tolist() == [[1, 1], [1, 1], [0, 0]]


def test_a_trained_model_is_encrypted_trained_further_used_and_decrypted(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(64, 4), torch.randn(64, 1)
    net: Any = lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1))  # noqa: E731
    clear = net()
    url = f"{tmp_path}/model"
    save_shares(clear.state_dict(), url, names("aby3"))
    for name, value in reveal_shares(url)[0].items():
        assert (value - clear.state_dict()[name]).abs().max() <= 2**-17

    def program(session: Session) -> Any:
        model = session.load_module(net(), url)
        a, b = session.share(x, session.names[0]), session.share(y, session.names[1])
        optimiser, losses = torch.optim.SGD(model.parameters(), lr=0.1), []
        for _ in range(5):
            optimiser.zero_grad()
            loss = F.mse_loss(model(a), b)
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
        session.save(model.state_dict(), f"{tmp_path}/trained")
        with pytest.raises(TensorMismatch, match=r"2\.bias, 2\.weight differ"):
            session.load_module(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), url)
        return session.reveal([losses, model(a)])

    losses, predicted = local(program)[0]
    assert losses == sorted(losses, reverse=True)
    decrypted = net()
    decrypted.load_state_dict(reveal_shares(f"{tmp_path}/trained")[0])
    assert torch.allclose(decrypted(x), predicted, atol=1e-3)
    assert F.mse_loss(decrypted(x), y) < losses[0]


# -- what is refused


def test_files_of_different_sharings_are_refused_together(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        save_shares({"x": VALUES}, f"{tmp_path}/{folder}", names("aby3"))
    with pytest.raises(ConfigError, match="of different sharings"):
        reveal_shares(f"{tmp_path}/a/party-0.safetensors", f"{tmp_path}/b/party-1.safetensors")
    (tmp_path / "b" / "party-2.safetensors").rename(tmp_path / "a" / "party-2.safetensors")
    errors: list[str] = []

    def program(session: Session) -> None:
        try:
            session.load(f"{tmp_path}/a")
        except HansaError as error:
            errors.append(str(error))

    local(program)
    assert len(errors) == 3 and all("one sharing" in each for each in errors), errors


def test_shares_of_another_protocol_or_of_other_parties_are_refused(tmp_path: Path) -> None:
    save_shares({"x": VALUES}, f"{tmp_path}/pond", names("pond"), protocol="pond")
    with pytest.raises(ConfigError, match="shares of 'pond' among .* this session is 'aby3'"):
        local(lambda session: session.load(f"{tmp_path}/pond"))
    with pytest.raises(ConfigError, match="'aby3' is computed by 3 parties, and 2 are given"):
        save_shares({"x": VALUES}, str(tmp_path), ["a", "b"])
    with pytest.raises(ConfigError, match="protocol='spdz'"):
        save_shares({"x": VALUES}, str(tmp_path), ["a"], protocol="spdz")
    with pytest.raises(DataError, match="'x' holds NaN"):
        save_shares({"x": VALUES / 0}, str(tmp_path), names("aby3"))
    with pytest.raises(ConfigError, match="has no 2 columns"):
        save_shares({"x": VALUES}, str(tmp_path), names("aby3"), columns={"x": "ab"})


def test_a_changed_share_is_seen_where_two_files_hold_it(tmp_path: Path) -> None:
    save_shares({"x": VALUES}, str(tmp_path), names("aby3"))
    file = tmp_path / "party-1.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(CorruptFile, match="disagrees with another about 'x'"):
        reveal_shares(str(tmp_path))


def test_an_absent_or_foreign_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="party-0.safetensors: make it with `hansa mpc share`"):
        load_shares(str(tmp_path), "party-0")
    with pytest.raises(NotFound, match="there are no files of shares"):
        reveal_shares(str(tmp_path))
    save_shares({"x": VALUES}, str(tmp_path), names("aby3"))
    (tmp_path / "party-0.safetensors").rename(tmp_path / "mine.safetensors")
    with pytest.raises(ConfigError, match="is the file of 'party-0', not of 'party-1'"):
        load_shares(str(tmp_path / "mine.safetensors"), "party-1")


@settings(max_examples=60, deadline=None)
@given(at=st.floats(0, 1), flip=st.integers(1, 255), cut=st.booleans())
def test_a_damaged_file_is_one_error(tmp_path_factory: pytest.TempPathFactory, at: float, flip: int, cut: bool) -> None:
    folder = tmp_path_factory.mktemp("shares")
    save_shares({"x": VALUES}, str(folder), names("aby3"))
    file = folder / "party-0.safetensors"
    raw = bytearray(file.read_bytes())
    place = int(at * (len(raw) - VALUES.numel() * 16 - 1))  # in the header: a changed share is still a share
    raw[place] ^= flip
    file.write_bytes(raw[:place] if cut else raw)
    try:
        found = load_shares(str(folder), "party-0")
        assert found.parts["x"][0].shape == VALUES.shape
    except HansaError as error:
        assert isinstance(error, CorruptFile | ConfigError)


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts.update(protocol="spdz"),
        lambda facts: facts.update(party="nobody"),
        lambda facts: facts["tensors"]["x"].update(bits=99),
        lambda facts: facts["tensors"]["x"].update(shape=[3, 2]),
        lambda facts: facts["tensors"].update(y=facts["tensors"]["x"]),
        lambda facts: facts.pop("id"),
        lambda facts: facts.update(parties=["a", "b", "c", "party-0"]),
        lambda facts: facts["tensors"]["x"].update(shape=[], columns=["a"]),
        lambda facts: facts["tensors"]["x"].update(dtype=["float32"]),
    ],
)
def test_a_header_that_does_not_fit_is_refused(tmp_path: Path, change: Any) -> None:
    save_shares({"x": VALUES}, str(tmp_path), names("aby3"))
    file = tmp_path / "party-0.safetensors"
    tensors, metadata = open_bytes(file.read_bytes())
    facts = json.loads(metadata["hansa shares"])
    change(facts)
    file.write_bytes(dump(tensors, {"hansa shares": json.dumps(facts)}))
    with pytest.raises(CorruptFile, match="is no file of shares"):
        load_shares(str(tmp_path), "party-0")
    file.write_bytes(dump(Tensors({"x": np.zeros(2)})))
    with pytest.raises(CorruptFile, match="is no file of shares"):
        load_shares(str(tmp_path), "party-0")


def test_a_failed_write_leaves_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_shares({"x": VALUES}, str(tmp_path), names("aby3"))
    before = sorted((path.name, path.read_bytes()) for path in tmp_path.iterdir())

    def full(*_: Any) -> list[bytes]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hansa.mpc.files.buffers", full)
    with pytest.raises(ConfigError, match="cannot be written: No space left"):
        save_shares({"x": VALUES * 2}, str(tmp_path), names("aby3"))
    assert sorted((path.name, path.read_bytes()) for path in tmp_path.iterdir()) == before


def test_urls_of_other_file_systems_and_a_place_for_each_party() -> None:
    url = "memory://{party}-bucket/heart"
    save_shares({"x": VALUES}, url, names("aby3"))
    places = [place_of(url, name) for name in names("aby3")]
    assert places[0] == "memory://party-0-bucket/heart/party-0.safetensors"
    assert torch.allclose(reveal_shares(*places)[0]["x"], VALUES, atol=2**-16)
    save_shares({"x": VALUES}, "memory://all/heart", names("aby3"))
    assert torch.allclose(reveal_shares("memory://all/heart")[0]["x"], VALUES, atol=2**-16)
