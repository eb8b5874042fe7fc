"""Which defence stops which attack: accuracy of a digit classifier, and how often a backdoor opens, in one picture.

    pip install 'hansa[sklearn,plot]'
    python examples/robust_matrix.py [picture.png]

20 clients train together, 4 of them lie. Each row is a reducer, each column what the liars do; the last three columns
are backdoors, for which the share of marked digits that the model calls a 0 is shown as well. HANSA_ROUNDS makes it
shorter.
"""

import os
import sys
from dataclasses import replace

import numpy as np

import hansa
from hansa.testing.attacks.adversary import Adversary, Attack
from hansa.testing.attacks.byzantine import ALittle, InnerProduct, Noise, Scaled, SignFlip, Zero
from hansa.testing.attacks.poison import Backdoor, EdgeCase, LabelFlip, Poison, Poisoned

ROUNDS = int(os.environ.get("HANSA_ROUNDS", "40"))
LIARS = ["03", "07", "11", "16"]
N, F = 20, len(LIARS)

digits, test = hansa.data.split(hansa.data.digits())
root, shared = digits.take(np.arange(100)), digits.take(np.arange(100, len(digits)))
honest = hansa.data.partition(shared, hansa.data.Dirichlet(alpha=1.0), clients=N, seed=3)
everybody = hansa.Clients.of({"root": root, **{name: honest[name] for name in honest}})


def fallen_sevens(data: hansa.Dataset) -> np.ndarray:
    """Sevens lying down, which nobody else has."""
    return np.rot90(data["x"][data["y"] == 7].reshape(-1, 8, 8), axes=(1, 2)).reshape(-1, 64)


mark = Backdoor(target=0, pixels=(0, 1, 8, 9), share=0.5)
edge = EdgeCase(hansa.Dataset(x=fallen_sevens(shared)), target=0, share=0.3)

ATTACKS: dict[str, tuple[Attack | None, Poison | None]] = {
    "nobody\nlies": (None, None),
    "zeros": (Zero(), None),
    "sign flip": (SignFlip(3.0), None),
    "noise": (Noise(10.0), None),
    "×1000": (Scaled(1000.0), None),
    "label\nflip": (Scaled(3.0), LabelFlip(10)),
    "a little\nis enough": (ALittle(1.5), None),
    "inner\nproduct": (InnerProduct(5.0), None),
    "backdoor": (None, mark),
    "model\nreplacement": (Scaled(N / F), mark),
    "edge case": (Scaled(N / F), edge),
}
DEFENCES: dict[str, tuple[list[hansa.Stage], hansa.Reducer]] = {
    "Sum": ([], hansa.Sum()),
    "NormBound(0.7)": ([], hansa.NormBound(0.7)),
    "CentredClipping(0.3)": ([hansa.Centre()], hansa.CentredClipping(0.3, iterations=3)),
    "Median": ([], hansa.Median()),
    "TrimmedMean(0.2)": ([], hansa.TrimmedMean(0.2)),
    f"Krum({F})": ([], hansa.Krum(F)),
    f"MultiKrum({F})": ([], hansa.MultiKrum(F)),
    f"Bulyan({F})": ([], hansa.Bulyan(F)),
    "GeometricMedian": ([], hansa.GeometricMedian()),
    "FLTrust": ([], hansa.FLTrust("root")),
}


def run(
    stages: list[hansa.Stage], reducer: hansa.Reducer, attack: Attack | None, poison: Poison | None
) -> hansa.History:
    trusted = isinstance(reducer, hansa.FLTrust)
    clients = everybody if trusted else honest
    job = hansa.Job(
        model=hansa.MLPModel((64, 32, 10)),
        algorithm=hansa.FedAvg(hansa.LocalWork(lr=0.1, epochs=2, batch_size=10)),
        pipeline=hansa.Pipeline([hansa.UniformMean(), *stages], reducer),
        sampling=hansa.Rooted("root", N) if trusted else hansa.Fixed(N),
        rounds=ROUNDS,
        evaluation=hansa.Evaluation(data=test, every=ROUNDS),
        seed=1,
    )
    if attack is not None:
        job = replace(job, pipeline=replace(job.pipeline, reducer=Adversary(reducer, LIARS, attack)))
    return hansa.train(job, Poisoned(clients, LIARS, poison) if poison is not None else clients)


def success(history: hansa.History, poison: Poison | None) -> float:
    """How often the backdoor opens, on digits that were no zeros; NaN if there is none."""
    if isinstance(poison, Backdoor):
        opened = poison.success(test)
    elif isinstance(poison, EdgeCase):
        unseen = fallen_sevens(test)
        opened = hansa.Dataset(x=unseen, y=np.zeros(len(unseen), np.int64))
    else:
        return float("nan")
    right, asked = history.job.model.evaluate(history.params, opened)["accuracy"]
    return right / asked


def draw(accuracy: np.ndarray, opened: np.ndarray, path: str) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(13, 5.2), width_ratios=[len(ATTACKS), 3], layout="constrained")
    backdoors = [i for i in range(len(ATTACKS)) if not np.isnan(opened[:, i]).all()]
    names = list(ATTACKS)
    for axis, values, columns, title, colours in (
        (axes[0], accuracy, names, f"accuracy on the test set in %, {F} of {N} clients lie", "viridis"),
        (axes[1], opened[:, backdoors], [names[i] for i in backdoors], "backdoor opens, in %", "viridis_r"),
    ):
        axis.imshow(values, vmin=0, vmax=1, cmap=colours, aspect="auto")
        axis.set_xticks(range(len(columns)), columns, fontsize=9)
        axis.set_yticks(range(len(DEFENCES)), list(DEFENCES) if axis is axes[0] else [], fontsize=10)
        axis.set_title(title)
        for (row, column), value in np.ndenumerate(values):
            dark = (value if colours == "viridis" else 1 - value) < 0.6
            axis.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color="white" if dark else "black")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(picture: str = "robust.png") -> None:
    accuracy, opened = (np.full((len(DEFENCES), len(ATTACKS)), np.nan) for _ in range(2))
    print(f"{'accuracy, %':22}" + "".join(f"{name.split(chr(10))[0]:>10}" for name in ATTACKS) + "   opens")
    for row, (name, (stages, reducer)) in enumerate(DEFENCES.items()):
        for column, (attack, poison) in enumerate(ATTACKS.values()):
            history = run(stages, reducer, attack, poison)
            accuracy[row, column] = history.rounds[-1].central["accuracy"]
            opened[row, column] = success(history, poison)
        shares = "  ".join(f"{100 * share:3.0f}" for share in opened[row] if not np.isnan(share))
        print(f"{name:22}" + "".join(f"{100 * share:10.0f}" for share in accuracy[row]) + f"   {shares}", flush=True)
    draw(accuracy, opened, picture)
    print(f"drawn in {picture}")


if __name__ == "__main__":
    main(*sys.argv[1:])
