"""Who holds what in the demo: one public data set, cut into three hospitals and a test set by a rule fixed beforehand.

    569 cases ─┬─ 20 % drawn at random: the test set, held by the server, seen by no hospital
               └─ the rest, diagnosis by diagnosis, in random order:
                                          benign    malignant
                   hospital-a               60 %         10 %     a screening centre: mostly healthy patients
                   hospital-b               30 %         30 %     a general hospital
                   hospital-c               10 %         60 %     an oncology clinic: patients sent on by others

The shares were written down before anything was trained and have not been changed since. The seed of a run decides the
draws, so five seeds give five test sets and five cuts.
"""

import csv
from pathlib import Path

import numpy as np

from hansa.core.data import Dataset
from hansa.data import breast_cancer, from_csv

SHARES = {"hospital-a": (0.60, 0.10), "hospital-b": (0.30, 0.30), "hospital-c": (0.10, 0.60)}
"""Hospital to its shares of (benign, malignant) cases."""
TEST = 0.2
FEATURES = 30

RULE = (
    "One fifth of the 569 cases is drawn as the test set and kept apart. Of the other benign cases, 60 % go to "
    "hospital-a, 30 % to hospital-b and 10 % to hospital-c; of the malignant ones 10 %, 30 % and 60 %."
)

# The least and greatest value of each feature as the data set's own description publishes them: public numbers, so
# that no hospital need tell another anything about its patients in order to bring features to one scale.
LOW = np.array(
    [6.981, 9.71, 43.79, 143.5, 0.053, 0.019, 0.0, 0.0, 0.106, 0.05]
    + [0.112, 0.36, 0.757, 6.802, 0.002, 0.002, 0.0, 0.0, 0.008, 0.001]
    + [7.93, 12.02, 50.41, 185.2, 0.071, 0.027, 0.0, 0.0, 0.156, 0.055],
    dtype=np.float32,
)
HIGH = np.array(
    [28.11, 39.28, 188.5, 2501.0, 0.163, 0.345, 0.427, 0.201, 0.304, 0.097]
    + [2.873, 4.885, 21.98, 542.2, 0.031, 0.135, 0.396, 0.053, 0.079, 0.03]
    + [36.04, 49.54, 251.2, 4254.0, 0.223, 1.058, 1.252, 0.291, 0.664, 0.208],
    dtype=np.float32,
)


def cut(seed: int) -> tuple[dict[str, Dataset], Dataset]:
    """Each hospital's cases and the test set, in the features' own units, y being 1 where malignant.

    Args:
      seed: decides which cases are drawn; the shares are the same for all seeds.
    """
    given = breast_cancer()
    everything = Dataset(x=given["x"], y=1 - given["y"])
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(everything))
    held_out, rest = order[: round(TEST * len(order))], order[round(TEST * len(order)) :]
    rows: dict[str, list[int]] = {name: [] for name in SHARES}
    for diagnosis in (0, 1):
        group = rest[everything["y"][rest] == diagnosis]
        ends = np.cumsum([round(share[diagnosis] * len(group)) for share in SHARES.values()])
        for name, part in zip(SHARES, np.split(group, ends[:-1]), strict=True):
            rows[name] += part.tolist()
    return {name: everything.take(sorted(rows[name])) for name in SHARES}, everything.take(np.sort(held_out))


def scaled(data: Dataset) -> Dataset:
    """Features brought to about −1 … 1 by the published ranges."""
    x = (data["x"] - LOW) / (HIGH - LOW) * np.float32(2) - np.float32(1)
    return Dataset(x=x.astype(np.float32), y=data["y"])


def held_out(seed: int) -> Dataset:
    """The server's test set, scaled."""
    return scaled(cut(seed)[1])


def write(data: Dataset, path: Path) -> None:
    """A hospital's cases as a CSV file in the features' own units, each number with all its digits."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow([*(f"feature_{i}" for i in range(data["x"].shape[1])), "y"])
        for features, diagnosis in zip(data["x"], data["y"], strict=True):
            table.writerow([*(repr(float(number)) for number in features), int(diagnosis)])


def read(path: Path, scale: bool = True) -> Dataset:
    """The cases of a file that `write` made, scaled: what a hospital's worker trains on."""
    data = from_csv(str(path))
    return scaled(data) if scale else data
