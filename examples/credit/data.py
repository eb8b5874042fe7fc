"""The two tables: a bank knows its customers and how well off they are, a merchant knows other things about people.

They share most people, not all, and neither has them in the other's order. The first 6,000 people of the Adult census
where HANSA_DATA is; else people who are made up from a seed. Well off means an income of over 50,000 a year.

    python examples/credit/data.py FOLDER      writes bank.csv and shop.csv
"""

import csv
import gzip
import os
import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import make_classification

BANK = {"age": 0, "work": 1, "gain": 10, "loss": 11, "hours": 12}
SHOP = {"schooling": 4, "marriage": 5, "occupation": 6, "household": 7}
PEOPLE = 6000


def people() -> tuple[dict[str, list[str]], dict[str, list[str]], list[str]]:
    """The columns of the bank, those of the merchant, and who is well off (1), for the same people."""
    file = Path(os.environ.get("HANSA_DATA", "")) / "adult" / "adult-train.csv.gz"
    if file.is_file():
        lines = gzip.decompress(file.read_bytes()).decode().splitlines()
        rows = [row for row in csv.reader(lines, skipinitialspace=True) if len(row) == 15][:PEOPLE]
        columns = [{name: [row[at] for row in rows] for name, at in places.items()} for places in (BANK, SHOP)]
        return columns[0], columns[1], [str(int(row[14].startswith(">"))) for row in rows]
    x, y = make_classification(
        1000, 9, n_informative=6, n_redundant=1, weights=[0.7], flip_y=0.1, class_sep=0.7, random_state=2
    )
    text = [[f"{value:.4f}" for value in column] for column in x.T]
    bank = dict(zip(BANK, text[:5], strict=True))
    return bank, dict(zip(SHOP, text[5:], strict=True)), [str(label) for label in y]


def write(folder: Path) -> None:
    """`bank.csv` and `shop.csv`, each with nine tenths of the people, in an order of its own."""
    bank, shop, well_off = people()
    names = [f"Customer-{number:05}" for number in range(len(well_off))]
    rng = np.random.default_rng(0)
    for owner, columns, spell in (("bank", {**bank, "well_off": well_off}, str.lower), ("shop", shop, str.upper)):
        rows = rng.permutation(len(names))[: int(0.9 * len(names))]
        with (folder / f"{owner}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", *columns])
            writer.writerows([spell(names[row]), *(column[row] for column in columns.values())] for row in rows)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
