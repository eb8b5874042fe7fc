"""The tutorial's figure: loss and accuracy on the validation flowers over the rounds, trained in this process.

    python examples/iris/curve.py [picture.png]

Needs matplotlib and PyTorch: pip install 'hansa[torch,data,plot]'. HANSA_ROUNDS=5 shortens it.
"""

import os
import sys
from dataclasses import replace

import matplotlib.pyplot as plt
from job import clients, job

import hansa

WHOLE = 30  # validation flowers


def main(picture: str | None) -> None:
    """Trains, prints the best round, and draws."""
    short = replace(job, rounds=int(os.environ.get("HANSA_ROUNDS", job.rounds)))
    history = hansa.train(short, clients)
    rounds = [record.round + 1 for record in history.rounds]
    loss = [record.central["loss"] for record in history.rounds]
    right = [round(record.central["accuracy"] * WHOLE) for record in history.rounds]
    best = max(right)
    print(f"parameters: {history.params.count}")
    for at in sorted({10, 20, 30, len(right)} & set(rounds)):
        print(f"round {at}: {right[at - 1]}/{WHOLE} right, loss {loss[at - 1]:.3f}")
    print(f"best: {best}/{WHOLE} = {best / WHOLE:.1%}, first in round {right.index(best) + 1}")
    if picture:
        _draw(picture, rounds, loss, [count / WHOLE for count in right])


def _draw(picture: str, rounds: list[int], loss: list[float], accuracy: list[float]) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    left.plot(rounds, loss, color="#b45309", linewidth=2)
    left.set(title="loss on 30 validation flowers", xlabel="round", ylim=(0, None))
    right.plot(rounds, accuracy, color="#1d4ed8", linewidth=2)
    right.axhline(29 / WHOLE, color="#64748b", linestyle="--", linewidth=1)
    right.annotate("29 of 30", (rounds[-1], 29 / WHOLE), ha="right", va="bottom", color="#64748b")
    right.set(title="accuracy", xlabel="round", ylim=(0, 1.05))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
