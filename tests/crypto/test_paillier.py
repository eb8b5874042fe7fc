"""Paillier: the laws of a homomorphism, of packing, and of secrets that stay inside."""

import random

import pytest
from hypothesis import given, settings, strategies as st

from hansa.core.errors import ConfigError, ProtocolError

pytest.importorskip("gmpy2", reason="Paillier needs gmpy2")

from hansa.crypto.paillier import Packing, PrivateKey, PublicKey

KEY = PrivateKey.generate(entropy=random.Random(1).randbytes)
OTHER = PrivateKey.generate(entropy=random.Random(2).randbytes)
plaintexts = st.integers(-(2**2000), 2**2000) | st.integers(-3, 3)
law = settings(max_examples=25, deadline=None)


@law
@given(st.lists(plaintexts, max_size=3))
def test_what_either_key_encrypts_decrypts_to_itself(values: list[int]) -> None:
    assert KEY.decrypt(KEY.encrypt(values)) == values
    assert KEY.decrypt(KEY.public.encrypt(values)) == values


@law
@given(plaintexts, plaintexts, st.integers(-(2**30), 2**30))
def test_products_of_ciphertexts_add_and_powers_scale(a: int, b: int, factor: int) -> None:
    public = KEY.public
    x, y = public.encrypt([a, b])
    assert KEY.decrypt([public.add(x, y), public.scale(x, factor)]) == [a + b, a * factor]
    assert KEY.decrypt(public.rerandomise([x])) == [a]


@law
@given(st.data(), st.integers(1, 40), st.integers(1, 70_000))
def test_packed_sums_come_apart_even_where_all_terms_are_extreme(data: st.DataObject, bits: int, terms: int) -> None:
    packing = Packing(bits, terms)
    extreme = st.sampled_from([-(2**bits), 0, 2**bits]) | st.integers(-(2**bits), 2**bits)
    values = data.draw(st.lists(extreme, min_size=1, max_size=packing.slots(KEY.public)))
    total = packing.pack(values) * terms
    assert packing.unpack(total, len(values)) == [value * terms for value in values]
    assert abs(total) < 2**KEY.public.bits


@law
@given(st.lists(st.integers(-(2**26), 2**26), min_size=1, max_size=20))
def test_ciphertexts_are_packed_without_being_opened(values: list[int]) -> None:
    packing = Packing(26, 1000)
    packed = KEY.public.pack(KEY.public.encrypt(values), packing.slot_bits)
    assert packing.unpack(KEY.decrypt([packed])[0], len(values)) == values


def test_a_slot_too_many_is_refused() -> None:
    with pytest.raises(ProtocolError, match="more than 2 slots"):
        Packing(4, 2).unpack(Packing(4, 2).pack([1, 2, 3]), 2)


def test_many_encryptions_are_those_of_few() -> None:
    values = [(-1) ** at * at**5 for at in range(2000)]
    made = KEY.encrypt(values)  # from here on by the larger table
    assert KEY.decrypt(made[::400]) == values[::400]
    assert len(set(made)) == len(made)


def test_equal_plaintexts_have_unequal_ciphertexts_and_changed_ones_change() -> None:
    first, second = KEY.public.encrypt([7, 7])
    assert first != second and KEY.public.rerandomise([first]) != [first]


def test_a_short_key_and_a_large_value_are_refused() -> None:
    with pytest.raises(ConfigError, match="bits=1024"):
        PrivateKey.generate(1024)
    with pytest.raises(ConfigError, match="more than 2046 bits"):
        KEY.encrypt([2**2046])


def test_no_representation_shows_a_secret() -> None:
    text = f"{KEY!r} {KEY} {KEY.public!r}"
    assert not any(str(secret) in text or f"{int(secret):x}" in text for secret in (KEY.p, KEY.q, KEY.h, KEY.public.n))


def test_a_key_has_the_promised_form() -> None:
    for prime in (KEY.p, KEY.q):
        assert prime % 4 == 3 and prime.bit_length() == 1024 and prime.is_prime()
    assert KEY.public.n.bit_length() == 2048
    assert PrivateKey.generate().public.n != PrivateKey.generate().public.n


@law
@given(st.lists(plaintexts, max_size=3))
def test_bytes_come_back_and_garbage_does_not(values: list[int]) -> None:
    public, made = KEY.public, KEY.encrypt(values)
    raw = public.to_bytes(made)
    assert public.from_bytes(raw, len(values)) == made and len(raw) == public.size_bytes * len(values)
    with pytest.raises(ProtocolError):
        public.from_bytes(raw + b"x")
    with pytest.raises(ProtocolError):
        public.from_bytes(raw, len(values) + 1)
    with pytest.raises(ProtocolError, match="another key"):
        public.from_bytes(bytes([255]) * public.size_bytes)


@pytest.mark.parametrize(("n", "h"), [(OTHER.p, 5), (KEY.public.n, 0), (KEY.public.n, KEY.p), (KEY.public.n + 1, 5)])
def test_foreign_keys_are_refused(n: int, h: int) -> None:
    with pytest.raises(ProtocolError, match="no key generation of ours"):
        PublicKey(type(KEY.p)(n), type(KEY.p)(h))
