"""Plain values of peers: what fits its form comes through, and everything else is one error that names its sender."""

import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from hansa.core.errors import ProtocolError
from hansa.runtimes.mesh import LocalMesh
from hansa.runtimes.mesh.messages import heard, named, parts, read, sized, told

HEAD = tuple[int, float | None, list[str], dict[str, bool]]


def test_what_is_told_is_heard() -> None:
    bank, shop, _ = LocalMesh.of(["bank", "shop", "stranger"])
    shop.send("bank", "head", [b'[7, null, ["a"], {"b": true}]'])
    mine = [0, 2.5, [], {}]
    assert told(bank, "head", mine, HEAD, ["bank", "shop"]) == {"bank": mine, "shop": [7, None, ["a"], {"b": True}]}
    assert heard(shop, "bank", "head", HEAD) == mine


@pytest.mark.parametrize(
    ("form", "raw", "fault"),
    [
        (int, b"", "no 'count' that can be read"),
        (int, b"\xff", "no 'count' that can be read"),
        (int, b"[" * 100_000, "no 'count' that can be read"),
        (int, b"true", "it is True, and no int"),
        (int, b"-1", "it is -1, and no count"),
        (int, b"9223372036854775808", "and no count"),
        (int, b"1.0", "it is 1.0, and no int"),
        (float, b"NaN", "NaN is no number here"),
        (float, b"1e999", "it is inf"),
        (str, b'"\\ud800"', "surrogates not allowed"),
        (list[int], b"{}", "it is {}, and no list"),
        (list[int], b"[1, null]", r"it\[1\] is None, and no int"),
        (tuple[int, str], b"[1]", "it has 1 values where 2 belong"),
        (tuple[int, str | None], b"[1, 2]", r"it\[1\] is 2, and no str"),
        (dict[str, int], b'{"a": "b"}', r"it\['a'\] is 'b', and no int"),
    ],
)
def test_garbage_is_one_error_that_names_its_sender(form: Any, raw: bytes, fault: str) -> None:
    with pytest.raises(ProtocolError, match=f"'shop' sent .*{fault}"):
        read(raw, "shop", "count", form)


@given(st.binary(max_size=40) | st.recursive(st.none() | st.integers() | st.floats() | st.text(), st.lists))
def test_anything_at_all_is_the_form_or_the_error(value: Any) -> None:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    try:
        made = read(raw, "shop", "numbers", list[int])
    except ProtocolError:
        return
    assert all(type(each) is int and each >= 0 for each in made)


def test_a_message_of_another_size_or_number_of_parts_is_refused() -> None:
    bank, shop = LocalMesh.of(["bank", "shop"])
    for buffers, fault in (([], "0 parts"), ([b"a", b"b"], "2 parts"), ([b"abc"], "3 bytes as 'x' where 4 belong")):
        shop.send("bank", "x", buffers)
        with pytest.raises(ProtocolError, match=f"'shop' sent {fault}"):
            sized(bank, "shop", "x", 4)
    shop.send("bank", "x", [b"a", b"b"])
    assert parts(bank, "shop", "x", 2) == [b"a", b"b"]


def test_a_fault_in_what_a_peer_sent_names_it_once() -> None:
    for said, told_of in (
        ("a point is off the curve", "'shop' is broken or hostile: a point"),
        ("'shop' lies", "^'shop' lies$"),
    ):
        with pytest.raises(ProtocolError, match=told_of), named("shop"):
            raise ProtocolError(said)
