"""Keys: what meets after normalisation, what never does, and what is refused by row."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from hansa.core.errors import ConfigError, DataError
from hansa.vertical.psi import Keys

SALT = b"one session"


def digest(*values: str, **options: object) -> bytes:
    keys = Keys([f"c{at}" for at in range(len(values))], **options)  # type: ignore[arg-type]
    return keys.digests({f"c{at}": [value] for at, value in enumerate(values)}, SALT).tobytes()


def test_keys_meet_after_normalisation_and_only_then() -> None:
    assert digest(" Ada@Example.org ") == digest("ada@example.org")
    assert digest("ﬁnn") == digest("finn") and digest("STRASSE") == digest("straße")
    assert digest("Ada", normalise=()) != digest("ada", normalise=())
    assert digest("+49 (30) 123-4", normalise="digits") == digest("49301234", normalise="digits")
    assert digest("AB-12", normalise=("alnum", "casefold")) == digest("ab12", normalise=("alnum", "casefold"))


@given(
    st.lists(st.text(min_size=1, max_size=4), min_size=2, max_size=2),
    st.lists(st.text(min_size=1), min_size=2, max_size=2),
)
def test_composite_keys_are_equal_only_part_by_part(a: list[str], b: list[str]) -> None:
    assert (digest(*a, normalise=()) == digest(*b, normalise=())) == (a == b)


def test_parts_of_a_key_do_not_run_together() -> None:
    assert digest("ab", "c") != digest("a", "bc") != digest("abc")


def test_another_salt_gives_unrelated_digests() -> None:
    table = {"id": ["a", "b"]}
    first, second = Keys("id").digests(table, b"one"), Keys("id").digests(table, b"two")
    assert first.shape == (2, 16) and not (first == second).all(axis=1).any()


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (["a", None, "c", None], r"'id' is empty in rows 1, 3 \(counted from 0\)"),
        (["a", float("nan")], r"'id' is empty in row 1 "),
        (["a", 7], "'id' holds int in row 1 .*read the column as text"),
        (np.arange(3), "holds int in rows 0, 1, 2"),
        (["a", "  "], "empty after normalisation in row 1"),
        (["a", "\ud800"], "broken Unicode in row 1"),
    ],
)
def test_bad_keys_are_refused_by_column_and_row(column: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Keys("id").digests({"id": column}, SALT)


def test_row_numbers_of_later_pieces_count_from_the_beginning() -> None:
    with pytest.raises(DataError, match="row 101 "):
        Keys("id").digests({"id": ["a", None]}, SALT, first=100)


def test_duplicates_are_refused_or_the_first_is_taken_as_declared() -> None:
    made = Keys("id").digests({"id": ["b", "a", "B ", "c", "a"]}, SALT)
    rows = np.arange(5)
    with pytest.raises(DataError, match="2 keys .* occur again, as in rows .*(0 and 2|1 and 4)"):
        Keys("id").distinct(made, rows)
    assert Keys("id", duplicates="first").distinct(made, rows).tolist() == [0, 1, 3]


def test_wrong_declarations_are_refused() -> None:
    for wrong, message in [
        ({"columns": ()}, "at least one column"),
        ({"columns": ("a", "a")}, "occurs twice"),
        ({"columns": "a", "normalise": ("upper",)}, r"\['upper'\] does not exist"),
        ({"columns": "a", "duplicates": "last"}, "choose refuse or first"),
    ]:
        with pytest.raises(ConfigError, match=message):
            Keys(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"no columns \['id'\] .* it has name"):
        Keys("id").digests({"name": ["a"]}, SALT)
