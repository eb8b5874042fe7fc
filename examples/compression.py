"""The same federation with ever fewer bytes: what each way of compressing updates costs in accuracy.

    pip install 'hansa[data,compress,plot]'
    python examples/compression.py [picture.png]

Fifty clients learn handwritten digits with a small neural network; every row changes the pipeline alone. The upper rows
add up, so that they go with a secure sum too (Pack apart, which a plain sum needs for its bytes); the lower ones are
decoded one by one.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import hansa
from hansa.core.pipeline import Stage

ROUNDS, TARGET = int(os.environ.get("HANSA_ROUNDS", "40")), 0.93

train_set, test_set = hansa.data.split(hansa.data.digits(), 0.2, seed=0)
clients = hansa.data.partition(train_set, hansa.data.Dirichlet(alpha=1.0), clients=50, seed=0)

CLIP, MEAN = hansa.AdaptiveClip(1.0), hansa.UniformMean()
ADD_UP: dict[str, Sequence[Stage]] = {
    "uncompressed": [MEAN],
    "Quantise(8)": [CLIP, MEAN, hansa.Quantise(8)],
    "Rotate, Quantise(4)": [CLIP, MEAN, hansa.Rotate(clip=3.0), hansa.Quantise(4), hansa.Pack()],
    "Rotate, Quantise(2)": [CLIP, MEAN, hansa.Rotate(clip=2.0), hansa.Quantise(2), hansa.Pack()],
    "Rotate, RandomMask(¼), Quantise(2)": [
        CLIP, MEAN, hansa.Rotate(clip=2.0), hansa.RandomMask(0.25), hansa.Quantise(2), hansa.Pack(),
    ],
    "PowerSGD(4)": [MEAN, hansa.PowerSGD(4)],
}  # fmt: skip
ONE_BY_ONE: dict[str, Sequence[Stage]] = {
    "Dither(4)": [MEAN, hansa.Dither(4)],
    "Dither(1)": [MEAN, hansa.Dither(1)],
    "Eden(2)": [MEAN, hansa.Eden(2)],
    "Eden(1), which is DRIVE": [MEAN, hansa.Eden(1)],
    "RandomMask(¼, own), Eden(2)": [MEAN, hansa.RandomMask(0.25, shared=False), hansa.Eden(2)],
    "Sign, error feedback": [MEAN, hansa.Sign()],
    "Ternary": [MEAN, hansa.Ternary()],
    "TopK(5 %), error feedback": [MEAN, hansa.TopK(0.05)],
}


@dataclass(frozen=True)
class Row:
    """One pipeline's bytes up for a client and round, and the accuracy after each round."""

    name: str
    bytes_up: float
    accuracy: Sequence[float]

    @property
    def until(self) -> str:
        """Kilobytes that a client had sent, were it asked each round, when the target was reached."""
        reached = [place + 1 for place, accuracy in enumerate(self.accuracy) if accuracy >= TARGET]
        return f"{reached[0] * self.bytes_up / 1000:.1f}" if reached else "never"


def run(name: str, stages: Sequence[Stage]) -> Row:
    job = hansa.Job(
        model=hansa.MLPModel((64, 100, 10)),
        algorithm=hansa.FedAvg(hansa.LocalWork(lr=0.1, epochs=2, batch_size=8)),
        pipeline=hansa.Pipeline(stages, hansa.Sum()),
        cohort=10,
        rounds=ROUNDS,
        evaluation=hansa.Evaluation(data=test_set),
        seed=1,
    )
    rounds = hansa.train(job, clients).rounds
    sent = sum(record.up_bytes for record in rounds) / sum(record.asked for record in rounds)
    return Row(name, sent, [record.central["accuracy"] for record in rounds])


def draw(rows: Sequence[Row], picture: str) -> None:
    import matplotlib.pyplot as plt

    figure, both = plt.subplots(1, 2, figsize=(11, 5.2), layout="constrained", sharex=True, sharey=True)
    for axes, kind, title in zip(both, (ADD_UP, ONE_BY_ONE), ("adds up", "decoded one by one"), strict=True):
        for row in rows:
            if row.name in kind or row.name == "uncompressed":
                sent = [(place + 1) * row.bytes_up / 1000 for place in range(len(row.accuracy))]
                colour = "black" if row.name == "uncompressed" else None
                axes.plot(sent, row.accuracy, color=colour, linewidth=1.4, label=row.name)
        axes.set(xscale="log", xlabel="kilobytes up of one client, were it asked each round", title=title)
        axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))
        axes.spines[["top", "right"]].set_visible(False)
    both[0].set(ylabel="accuracy on held-out digits")
    figure.savefig(picture, dpi=120)


def main(picture: str | None = None) -> None:
    rows = [run(name, stages) for name, stages in {**ADD_UP, **ONE_BY_ONE}.items()]
    print(f"{'pipeline':36} {'adds up':8} {'bytes up':>9} {'share':>7} {'accuracy':>9} {f'kB to {TARGET:.0%}':>10}")
    for row in rows:
        share = f"1/{rows[0].bytes_up / row.bytes_up:.1f}"
        adds_up = "yes" if row.name in ADD_UP else "no"
        print(f"{row.name:36} {adds_up:8} {row.bytes_up:9.0f} {share:>7} {row.accuracy[-1]:9.3f} {row.until:>10}")
    if picture is not None:
        draw(rows, picture)
        print(f"drawn in {picture}")


if __name__ == "__main__":
    main(*sys.argv[1:])
