"""From two tables of different columns to a prediction: `hansa psi`, training on shares, `hansa answer`; each party a
process.

    pip install 'hansa[deploy,sklearn,torch,vertical]'
    python examples/credit/run.py [--keep FOLDER] [--picture roc.png]

This does in one command what docs/vertical.md does in three terminals, prints what the bank reaches alone, together,
and what it would with all columns in one place, and draws their ROC curves.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from socket import socket

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve

from data import write
from hansa.app.enrol import Authority
from hansa.vertical import AlignedTable
from hansa.vertical.encode import one_hot
from hansa.vertical.psi.files import read_aligned

HERE = Path(__file__).resolve().parent
OWNERS, PARTIES = ("bank", "shop"), ("bank", "helper", "shop")


def enrol(folder: Path) -> None:
    """An identity for each party, and the file that says where they are: with the helper, and without it."""
    authority = Authority.create(folder / "authority", "credit")
    for name in PARTIES:
        authority.issue(name, "party", hosts=["127.0.0.1"]).rename(folder / f"{name}.pem")
    for file, names in (("owners.toml", OWNERS), ("parties.toml", PARTIES)):
        sockets = [socket() for _ in names]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        entries = [
            f'[[party]]\nname = "{name}"\naddress = "127.0.0.1:{each.getsockname()[1]}"\n'
            for name, each in zip(names, sockets, strict=True)
        ]
        for each in sockets:
            each.close()
        (folder / file).write_text("\n".join(entries))


def together(folder: Path, commands: dict[str, Sequence[str]]) -> None:
    """Runs one `hansa` command for each party, at the same time, and shows what they said."""
    running = {
        name: subprocess.Popen(
            [sys.executable, "-m", "hansa", *words], cwd=folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for name, words in commands.items()
    }  # fmt: skip
    said = {name: process.communicate()[0] for name, process in running.items()}
    for name, text in said.items():
        print("\n".join(f"  {name:7}│ {line}" for line in text.strip().splitlines()))
    failed = [name for name, process in running.items() if process.returncode]
    if failed:
        raise SystemExit(f"{', '.join(failed)} failed: see above.")


def fitted(train: np.ndarray, test: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Chances of the test rows by scikit-learn, with the strength of l2 that `train.py` has."""
    centre, scale = train.mean(0), np.maximum(train.std(0), 1e-9)
    model = LogisticRegression(C=1 / (0.01 * len(train)), max_iter=1000).fit((train - centre) / scale, labels)
    return model.predict_proba((test - centre) / scale)[:, 1]


def main(folder: Path, picture: str | None) -> None:
    write(folder)
    enrol(folder)
    print("hansa psi: whom do both owners have?")
    psi = ["--parties", "owners.toml", "--key", "id", "--yes"]
    together(folder, {
        me: ["psi", "--me", me, *psi, "--data", f"{me}.csv", "--out", f"{me}-aligned.csv"] for me in OWNERS
    })  # fmt: skip
    print("\nhansa mpc party: a logistic regression on shares")
    together(
        folder,
        {me: ["mpc", "party", "--me", me, "--parties", "parties.toml", str(HERE / "train.py")] for me in PARTIES},
    )

    print("\nhansa answer: three people, by their ids")
    (folder / "who.txt").write_text("Customer-00001\nCustomer-00002\nCustomer-00003\n")
    answer = ["answer", "--asker", "bank", "--model", str(HERE / "service.py"), "--yes"]
    together(folder, {
        "bank": [*answer, "--me", "bank", "--data", "bank.csv", "--ids", "who.txt", "--default", "null"],
        "helper": [*answer, "--me", "helper", "--once"],
        "shop": [*answer, "--me", "shop", "--data", "shop.csv", "--once"],
    })  # fmt: skip

    labels, chance = np.loadtxt(folder / "bank-answers.csv", delimiter=" ").T
    parts = {me: one_hot(read_aligned(folder / f"{me}-aligned.csv")).split(0.7, seed=1) for me in OWNERS}
    target, rest = parts["bank"][0]["well_off"], [name for name in parts["bank"][0].names if name != "well_off"]

    def columns(owners: Sequence[str], which: int) -> np.ndarray:
        tables: list[AlignedTable] = [parts[me][which] for me in owners]
        return np.column_stack([t.matrix(rest if t.owner == "bank" else None) for t in tables])

    curves = {
        "bank alone": fitted(columns(["bank"], 0), columns(["bank"], 1), target),
        "merchant's columns alone": fitted(columns(["shop"], 0), columns(["shop"], 1), target),
        "together, on shares": chance,
        "all columns in one place": fitted(columns(OWNERS, 0), columns(OWNERS, 1), target),
    }
    print(f"\n{'who is well off?':28}{'area under the ROC curve':>26}")
    for name, scores in curves.items():
        print(f"{name:28}{roc_auc_score(labels, scores):26.4f}")
    if picture:
        draw(picture, labels, curves)


def draw(picture: str, labels: np.ndarray, curves: dict[str, np.ndarray]) -> None:
    """The ROC curves."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5.2, 4.6), layout="constrained")
    styles = ({"color": "tab:gray"}, {"color": "tab:olive"}, {"color": "black", "linestyle": "--"}, {"linewidth": 4})
    order = sorted(zip(curves.items(), styles, strict=True), key=lambda pair: pair[0][0] == "together, on shares")
    for (name, scores), style in order:
        axes.plot(*roc_curve(labels, scores)[:2], label=f"{name} ({roc_auc_score(labels, scores):.3f})", **style)
    axes.set(
        xlabel="share of the others that is flagged", ylabel="share of the well-off that is flagged", aspect="equal"
    )
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where the parties' files stay")
    parser.add_argument("--picture", metavar="PNG", help="of the ROC curves; it needs matplotlib")
    asked = parser.parse_args()
    if asked.keep:
        asked.keep.mkdir(parents=True, exist_ok=True)
        main(asked.keep.resolve(), asked.picture)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary), asked.picture)
