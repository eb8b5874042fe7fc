"""FedBuff in simulated time: a buffer of ten updates against rounds that wait, for all or for the first to answer.

    HANSA_DATA=… python examples/papers/fedbuff.py --picture fedbuff.png

MNIST's 2NN on 1,000 clients of some sixty digits; a hundred of them train at any time. How long a client takes for its
digits is half-normal, as the paper found it in production, and a synchronous round waits for the slowest it counts.
`examples/virtual_time.py` is a first look at the same on phones, tablets and laptops.

Source: Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba: Federated Learning with Buffered Asynchronous
Aggregation, 2022, section 6, https://arxiv.org/abs/2106.06639
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from fedavg_mnist import two_hidden_layers
from images import images
from report import Line, arguments, draw, reached, runtime, table

import hansa
from hansa.runtimes.virtual.runtime import VirtualHistory
from hansa.runtimes.virtual.timing import curve

EXAMPLES_PER_S = 20.0  # of a device one standard deviation slow


@dataclass(frozen=True)
class Scale:
    """How large a run is; `buffer` updates make a step of FedBuff, `concurrency` are in flight or make a round."""

    clients: int
    concurrency: int
    buffer: int
    rounds: int
    target: float

    def ways(self) -> dict[str, tuple[type[hansa.Algorithm], hansa.Fixed, int]]:
        """Name to algorithm, sampling and rounds: with as many counted updates each."""
        at_once, steps = self.concurrency, self.rounds * self.concurrency // self.buffer
        return {
            "synchronous": (hansa.FedAvg, hansa.Fixed(at_once), self.rounds),
            "over-selected by 30 %": (hansa.FedAvg, hansa.Fixed(at_once, over_select=0.3), self.rounds),
            "FedBuff": (hansa.FedBuff, hansa.Fixed(at_once, quorum=self.buffer, max_staleness=1000), steps),
        }


FULL, QUICK = Scale(1000, 100, 10, 150, 0.95), Scale(60, 20, 5, 15, 0.6)
MODEL = hansa.TorchModel(two_hidden_layers, F.cross_entropy)


def half_normal(clients: int, seed: int) -> hansa.Fleet:
    """Devices whose time for one example is |N(0, 1)| / EXAMPLES_PER_S, and whose links take none, as in the paper."""
    slowness = np.abs(np.random.default_rng(seed).standard_normal(clients))
    link = {"down_bytes_per_s": np.inf, "up_bytes_per_s": np.inf, "latency_s": 0.0}
    return hansa.Fleet(clients, {"examples_per_s": EXAMPLES_PER_S / np.maximum(slowness, 1e-3), **link})


def learn(scale: Scale, name: str, quick: bool, processes: int) -> VirtualHistory:
    """One way of training, in simulated time."""
    train, test = images(quick)
    algorithm, sampling, rounds = scale.ways()[name]
    job = hansa.Job(
        model=MODEL,
        algorithm=algorithm(hansa.LocalWork(lr=0.2, epochs=1, batch_size=10)),
        pipeline=hansa.Pipeline([hansa.UniformMean()], hansa.Sum()),
        sampling=sampling,
        rounds=rounds,
        evaluation=hansa.Evaluation(data=test, every=max(1, rounds // 100)),
        seed=1,
    )
    clients = hansa.data.partition(train, hansa.data.InnerDirichlet(alpha=1.0), clients=scale.clients, seed=1)
    fleet = half_normal(scale.clients, seed=1)
    return hansa.Virtual(fleet, runtime(processes)).run(job, clients)


def by_updates(history: VirtualHistory) -> Line:
    """Accuracy by the number of updates that were counted before it."""
    counted = np.cumsum([record.counted for record in history.rounds])
    seen = [record for record in history.rounds if record.central]
    return [int(counted[record.round]) for record in seen], [record.central["accuracy"] for record in seen]


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, Line]]:
    options = arguments(__doc__, argv)
    scale = QUICK if options.quick else FULL
    histories = {name: learn(scale, name, options.quick, options.processes) for name in scale.ways()}
    seconds: dict[str, Line] = {
        name: tuple(zip(*curve(history, "accuracy"), strict=True)) for name, history in histories.items()
    }
    updates = {name: by_updates(history) for name, history in histories.items()}
    base = reached(seconds["synchronous"], scale.target)
    rows = []
    for name, history in histories.items():
        needed = reached(seconds[name], scale.target)
        ratio = base / needed if base and needed else None
        rows.append([
            name, needed and f"{needed:.0f}", ratio and f"{ratio:.1f}", reached(updates[name], scale.target),
            sum(record.late for record in history.rounds), f"{max(seconds[name][1]):.4f}",
        ])  # fmt: skip
    goal = f"to {scale.target:.0%}"
    table([goal, "simulated s", "times as fast", "updates", "late in all", "best accuracy"], rows)
    stale = histories["FedBuff"].tally.staleness
    print(f"FedBuff's updates were {np.average(list(stale), weights=list(stale.values())):.1f} versions old on average")
    print("published: FedBuff 3.3 times as efficient as synchronous rounds (the first version of the paper: up to 3.8)")
    draw(options.picture, {"": seconds}, xlabel="simulated seconds", ylabel="accuracy", xscale="log")
    return {"seconds": seconds, "updates": updates}


if __name__ == "__main__":
    main()
