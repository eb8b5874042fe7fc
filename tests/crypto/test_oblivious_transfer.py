"""Oblivious transfer: the receiver has the pad of its choice and not the other, and the sender's view says nothing."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from hansa.core.checkpoint import Buffer
from hansa.core.errors import ConfigError, ProtocolError
from hansa.crypto.oblivious_transfer import (
    MatrixReceiver,
    MatrixSender,
    OtReceiver,
    OtSender,
    base_receive,
    base_send,
    transpose,
)
from hansa.runtimes.mesh.local import LocalMesh, together


def both(sender: Callable[[LocalMesh], Any], receiver: Callable[[LocalMesh], Any]) -> list[Any]:
    return together(LocalMesh.of(("s", "r")), lambda mesh: (sender if mesh.me == "s" else receiver)(mesh))


def bits_of(matrix: np.ndarray) -> np.ndarray:
    return np.unpackbits(matrix.view(np.uint8), axis=1, bitorder="little")


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_a_matrix_of_bits_is_transposed(tall: int, wide: int, seed: int) -> None:
    matrix = np.random.default_rng(seed).integers(0, 2**64, (64 * tall, wide), dtype=np.uint64)
    assert np.array_equal(bits_of(transpose(matrix)), bits_of(matrix).T)


def test_matrices_larger_than_the_cache_are_transposed_in_pieces() -> None:
    for shape in ((128, 5000), (64 * 1100, 8)):
        matrix = np.random.default_rng(1).integers(0, 2**64, shape, dtype=np.uint64)
        assert np.array_equal(bits_of(transpose(matrix)), bits_of(matrix).T)


def test_base_transfers_give_the_chosen_key_and_not_the_other() -> None:
    choices = np.random.default_rng(1).integers(0, 2, 64)
    pairs, keys = both(lambda mesh: base_send(mesh, "r", 64), lambda mesh: base_receive(mesh, "s", choices))
    assert keys == [pair[choice] for pair, choice in zip(pairs, choices, strict=True)]
    assert len({key for pair in pairs for key in pair}) == 128


@pytest.mark.parametrize("raw", [bytes(33), b"\2" + b"\xff" * 32, b"short"])
def test_what_is_no_point_is_refused(raw: bytes) -> None:
    def hostile(mesh: LocalMesh) -> None:
        mesh.send("r", "base", [raw])

    with pytest.raises(ProtocolError, match="'s' sent .* no point"):
        both(hostile, lambda mesh: base_receive(mesh, "s", np.zeros(1)))


def test_a_point_sent_back_is_refused() -> None:
    def hostile(mesh: LocalMesh) -> None:
        mesh.send("s", "base choices", [bytes(mesh.recv("s", "base")[0])])

    with pytest.raises(ProtocolError, match="sent our own point back"):
        both(lambda mesh: base_send(mesh, "r", 1), hostile)


@pytest.mark.parametrize("width", [64, 128, 448, 512])
@pytest.mark.parametrize("counts", [(1,), (64, 100), (1000, 7)])
def test_the_matrix_form_differs_by_the_code_words_under_the_secret(width: int, counts: tuple[int, ...]) -> None:
    random = np.random.default_rng(1)
    codes = [random.integers(0, 2**64, (count, width // 64), dtype=np.uint64) for count in counts]

    def send(mesh: LocalMesh) -> Any:
        sender = MatrixSender(mesh, "r", width)
        return sender.secret, [sender.matrix(count) for count in counts]

    def receive(mesh: LocalMesh) -> Any:
        receiver = MatrixReceiver(mesh, "s", width)
        return [receiver.matrix(each) for each in codes]

    (secret, q), t = both(send, receive)
    for code, left, right in zip(codes, q, t, strict=True):
        assert np.array_equal(left, right ^ (code & secret))


@pytest.mark.parametrize("blocks", [1, 3])
def test_the_receiver_has_the_pad_of_its_choice_and_not_the_other(blocks: int) -> None:
    choices = np.random.default_rng(1).integers(0, 2, 5000)

    def send(mesh: LocalMesh) -> Any:
        sender = OtSender(mesh, "r")
        return [[rows.pads(blocks) for rows in sender.accept(count)] for count in (1000, 4000)]

    def receive(mesh: LocalMesh) -> Any:
        receiver = OtReceiver(mesh, "s")
        return [receiver.request(part).pads(blocks) for part in (choices[:1000], choices[1000:])]

    sent, received = both(send, receive)
    zero, one = (np.concatenate([part[side] for part in sent]) for side in (0, 1))
    mine = np.concatenate(received)
    assert np.array_equal(mine, np.where(choices[:, None] == 0, zero, one))
    every = np.concatenate([zero, one]).reshape(-1)
    assert len(np.unique(every)) == every.size, "a pad was used twice"


@pytest.mark.slow
def test_a_million_transfers_give_the_chosen_pad() -> None:
    choices = np.random.default_rng(1).integers(0, 2, 1_000_000)
    sent, mine = both(
        lambda mesh: [rows.pads(1) for rows in OtSender(mesh, "r").accept(len(choices))],
        lambda mesh: OtReceiver(mesh, "s").request(choices).pads(1),
    )
    assert np.array_equal(mine, np.where(choices[:, None] == 0, *sent))
    every = np.concatenate(sent).reshape(-1)
    assert len(np.unique(every)) == every.size, "a pad was given twice"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64])
@pytest.mark.parametrize("length", [1, 5, 64])
def test_correlated_transfers_share_choice_times_value(dtype: type, length: int) -> None:
    random = np.random.default_rng(1)
    values = random.integers(0, np.iinfo(dtype).max, (300, length), dtype=dtype, endpoint=True)
    choices = random.integers(0, 2, 300).astype(np.uint8)

    def receive(mesh: LocalMesh) -> Any:
        receiver = OtReceiver(mesh, "s")
        shapes = [(100, length), (200, length)]
        parts = receiver.correlated(receiver.request(choices), choices, shapes, [np.dtype(dtype)] * 2)
        return np.concatenate(parts)

    a, b = both(lambda mesh: np.concatenate(OtSender(mesh, "r").correlated([values[:100], values[100:]])), receive)
    assert np.array_equal(a + b, values * choices.astype(dtype)[:, None])
    assert not np.array_equal(a, values)
    assert len(np.unique(b)) > 1


class Listening(LocalMesh):
    """A mesh that keeps what it receives under the tags of extensions."""

    heard: list[bytes]

    def recv(self, sender: str, tag: str, deadline_s: float | None = None) -> list[Buffer]:
        buffers = super().recv(sender, tag, deadline_s)
        if tag in ("columns", "corrections"):
            self.heard.append(b"".join(bytes(each) for each in buffers))
        return buffers


@pytest.mark.parametrize("choice", [0, 1])
def test_messages_are_uniform_whatever_the_choices_and_values_are(choice: int) -> None:
    meshes = [Listening(mesh.me, ("s", "r"), mesh._links, mesh._lost) for mesh in LocalMesh.of(("s", "r"))]
    choices, values = np.full(4000, choice), np.zeros((4000, 8), np.uint64)

    def play(mesh: LocalMesh) -> None:
        assert isinstance(mesh, Listening)
        mesh.heard = []
        if mesh.me == "s":
            OtSender(mesh, "r").correlated([values])
        else:
            receiver = OtReceiver(mesh, "s")
            receiver.correlated(receiver.request(choices), choices, [values.shape], [values.dtype])

    together(meshes, play)
    for mesh in meshes:
        (heard,) = mesh.heard
        counts = np.bincount(np.frombuffer(heard, np.uint8), minlength=256)
        expected = len(heard) / 256
        assert 255 - 6.5 * 22.6 < ((counts - expected) ** 2 / expected).sum() < 255 + 6.5 * 22.6


def test_secrets_are_not_printed_and_bad_widths_are_named() -> None:
    with pytest.raises(ConfigError, match="width=100: choose a multiple of 64"):
        MatrixSender(LocalMesh.of(("s", "r"))[0], "r", 100)
    sender, _ = both(lambda mesh: OtSender(mesh, "r"), lambda mesh: OtReceiver(mesh, "s"))
    assert repr(sender) == "OtSender(peer='r', width=128)"
