"""A model of your own in plain Python: lists and loops, a straight line through points that four parties hold.

    pip install hansa
    python examples/custom_plain_python.py

Whatever a party's data is (here a list of pairs), `fit` may read it as it likes. Hansa asks for named numbers back.
"""

import random
from dataclasses import dataclass

import hansa


@dataclass(frozen=True)
class Line(hansa.Model):
    """y ≈ slope·x + offset, by gradient descent on the squared error."""

    def init(self, seed):
        return hansa.Tensors({"slope": [0.0], "offset": [0.0]})

    def fit(self, params, data, work, rng):
        slope, offset = float(params["slope"][0]), float(params["offset"][0])
        batches = work.batches(len(data), rng)
        for rows in batches:
            errors = [(slope * data[i][0] + offset - data[i][1], data[i][0]) for i in rows]
            slope -= work.lr * 2 * sum(error * x for error, x in errors) / len(errors)
            offset -= work.lr * 2 * sum(error for error, _ in errors) / len(errors)
        return hansa.Fit(hansa.Tensors({"slope": [slope], "offset": [offset]}), steps=len(batches))

    def evaluate(self, params, data):
        slope, offset = self.finish(params)
        return {"loss": (sum((slope * x + offset - y) ** 2 for x, y in data), len(data))}

    def finish(self, params):
        return float(params["slope"][0]), float(params["offset"][0])


def party(number: int) -> list[tuple[float, float]]:
    """Points near y = 3x + 1; each party sees another stretch of x."""
    draw = random.Random(number)
    xs = [draw.uniform(number - 2, number - 1) for _ in range(20 + 10 * number)]
    return [(x, 3 * x + 1 + draw.gauss(0, 0.1)) for x in xs]


PARTIES = {f"party-{number}": party(number) for number in range(4)}

job = hansa.Job(
    model=Line(),
    algorithm=hansa.FedAvg(hansa.LocalWork(lr=0.05, epochs=1, batch_size=10)),
    pipeline=hansa.Pipeline([hansa.WeightedMean()], hansa.Sum()),
    evaluation=hansa.Evaluation(workers=None, every=10),
    cohort=len(PARTIES),
    rounds=60,
)


def main() -> None:
    history = hansa.train(job, hansa.Clients.of(PARTIES))
    for record in history.rounds:
        if record.workers:
            print(f"round {record.round + 1:2}  squared error {record.workers['loss']:.4f}")
    slope, offset = history.model
    print(f"y = {slope:.2f} x + {offset:.2f}")


if __name__ == "__main__":
    main()
