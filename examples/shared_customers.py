"""Two and three owners find out whom they share, and nothing of anybody else.

    pip install 'hansa[vertical]'
    python examples/shared_customers.py

Here all owners are threads of this process; with `TlsMesh` in place of `LocalMesh` each is a process of its own, and
the same calls work over mutual TLS. Mail addresses are compared in lower case and without blanks around them.
"""

from typing import Any

from hansa.runtimes.mesh.local import LocalMesh, together
from hansa.vertical import Keys, align
from hansa.vertical.psi import cardinality

TABLES: dict[str, dict[str, list[Any]]] = {
    "bank": {"mail": ["ada@example.org", "bob@example.org", "Eve@example.org"], "income": [52.0, 31.5, 78.0]},
    "clinic": {"mail": ["eve@example.org", "cyd@example.org", "ada@example.org"], "visits": [3, 0, 1]},
    "shop": {"mail": ["EVE@example.org ", "dan@example.org", "ada@example.org"], "spent": [120.0, 8.5, 64.0]},
}
KEY = Keys("mail")


def show(owners: list[str], protocol: str) -> None:
    def play(mesh: LocalMesh) -> Any:
        return align(mesh, TABLES[mesh.me], KEY, protocol=protocol, accept=lambda said: True)

    tables = together(LocalMesh.of(owners), play)
    print(f"{protocol}: {len(tables[0])} shared by {', '.join(owners)}")
    for table in tables:
        (name,) = table.names
        print(f"  {table.owner:7} {name:7} of eve and ada: {sorted(table[name].tolist())}")
    assert len({table.alignment for table in tables}) == 1, "all owners have the same order"


def main() -> None:
    show(["bank", "shop"], "ecdh")
    show(["bank", "shop"], "fast")
    show(["bank", "clinic", "shop"], "many")

    def count(mesh: LocalMesh) -> Any:
        return cardinality(mesh, TABLES[mesh.me], KEY, learner="bank", accept=lambda said: True)

    found = together(LocalMesh.of(["bank", "shop"]), count)
    print(f"cardinality: the bank learns {found[0].count}, and the shop {found[1]}")


if __name__ == "__main__":
    main()
