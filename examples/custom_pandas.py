"""A model of your own, fitted by pandas: what five shops sell on a day of the week, with no row leaving a shop.

    pip install hansa pandas
    python examples/custom_pandas.py

Each shop's data is a DataFrame, as `pandas.read_csv` would give it. The model is a table of statistics: days, sales and
squared sales for each day of the week. One round adds them up; mean and spread over all shops follow from the sums, and
are those of the pooled data.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd

import hansa


@dataclass(frozen=True)
class SalesByDay(hansa.Model):
    """Sums over rows for each day of the week; `fit` adds a party's own to what it was sent."""

    metrics: ClassVar = {"error": 1e6}  # the largest error of one day's forecast

    def init(self, seed):
        return hansa.Tensors({name: np.zeros(7) for name in ("days", "sales", "squares")})

    def fit(self, params, data, work, rng):
        days = (
            data.assign(squares=data.sales**2)
            .groupby("weekday")
            .agg(days=("sales", "size"), sales=("sales", "sum"), squares=("squares", "sum"))
        )
        own = hansa.Tensors({name: days[name].reindex(range(7), fill_value=0).to_numpy(float) for name in params})
        return hansa.Fit(params + own, steps=1)

    def evaluate(self, params, data):
        forecast = self.finish(params)["mean"]
        return {"error": (float((data.sales - data.weekday.map(forecast)).abs().sum()), len(data))}

    def finish(self, params):
        mean = params["sales"] / params["days"]
        spread = np.sqrt(params["squares"] / params["days"] - mean**2)
        return pd.DataFrame({"mean": mean, "spread": spread}, index=pd.Index(range(7), name="weekday"))


def shop(number: int) -> pd.DataFrame:
    """A shop's own table; no two shops have as many days."""
    rng = np.random.default_rng(number)
    weekday = rng.integers(0, 7, 100 + 50 * number)
    return pd.DataFrame({"weekday": weekday, "sales": 200 + 40 * weekday + rng.normal(0, 30, len(weekday))})


SHOPS = {f"shop-{number}": shop(number) for number in range(5)}

# A uniform mean divides the sum by the number of shops; mean and spread are ratios of sums, so that does not matter.
job = hansa.Job(
    model=SalesByDay(),
    algorithm=hansa.FedAvg(hansa.LocalWork(lr=1.0, steps=1)),
    pipeline=hansa.Pipeline([hansa.UniformMean()], hansa.Sum()),
    evaluation=hansa.Evaluation(workers=None),
    cohort=len(SHOPS),
)


def main() -> None:
    history = hansa.train(job, hansa.Clients.of(SHOPS))
    print(history.model.round(1).to_string())
    pooled = pd.concat(SHOPS.values()).groupby("weekday").sales
    print(f"largest difference from the pooled mean: {(history.model['mean'] - pooled.mean()).abs().max():.1e}")
    print(f"largest difference from the pooled spread: {(history.model.spread - pooled.std(ddof=0)).abs().max():.1e}")
    print(f"mean error of the forecast at the shops: {history.rounds[-1].workers['error']:.1f}")


if __name__ == "__main__":
    main()
