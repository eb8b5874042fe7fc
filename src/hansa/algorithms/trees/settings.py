"""How trees are boosted: `Boosting`, the same at every party."""

import hashlib
import json
from dataclasses import asdict, dataclass

from hansa.core.errors import require

LOSSES = ("logistic", "squared", "softmax")
MAX_DEPTH = 12


@dataclass(frozen=True, kw_only=True)
class Boosting:
    """Settings of gradient-boosted trees over histograms.

    Args:
      trees: rounds of boosting; `softmax` grows one tree for each class in a round.
      learning_rate: factor of each tree's leaves.
      depth: levels of splits, 1 to 12.
      bins: of a column of numbers, cut at its quantiles; 2 to 256.
      loss: `logistic` (labels 0 and 1), `squared` (numbers) or `softmax` (classes 0 … K − 1).
      l2: λ, added to the hessian of each leaf.
      gamma: what a split must gain.
      min_child_weight: the smallest sum of hessians in a child.
      goss: (a, b): each round takes the share a of rows with the largest gradients and the share b of the others, at
        random and weighed up (Ke et al. 2017, LightGBM, algorithm 2). Which rows those are, all owners see.
      validation: share of the rows that are kept out, and whose loss decides when to stop.
      patience: rounds without a lower loss on them, after which it stops and keeps the best; None never stops.
      seed: of public choices: which rows are kept out or sampled.

    Raises:
      ConfigError: a value is out of its range.

    | use | settings |
    |---|---|
    | as XGBoost's defaults | `Boosting(depth=6, bins=256)` |
    | over encrypted gradients | `Boosting(trees=50, depth=5, bins=32, goss=(0.2, 0.1))` |
    """

    trees: int = 100
    learning_rate: float = 0.3
    depth: int = 5
    bins: int = 32
    loss: str = "logistic"
    l2: float = 1.0
    gamma: float = 0.0
    min_child_weight: float = 1.0
    goss: tuple[float, float] | None = None
    validation: float = 0.0
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.trees >= 1, f"trees={self.trees}: at least 1 is needed.")
        require(0 < self.learning_rate <= 1, f"learning_rate={self.learning_rate}: it lies in (0, 1].")
        require(1 <= self.depth <= MAX_DEPTH, f"depth={self.depth}: choose 1 to {MAX_DEPTH}.")
        require(2 <= self.bins <= 256, f"bins={self.bins}: choose 2 to 256.")
        require(self.loss in LOSSES, f"loss='{self.loss}': choose one of {', '.join(LOSSES)}.")
        for name in ("l2", "gamma", "min_child_weight"):
            require(getattr(self, name) >= 0, f"{name}={getattr(self, name)}: it may not be negative.")
        if self.goss is not None:
            top, rest = self.goss
            fault = f"goss={self.goss}: give two shares above 0 whose sum is below 1, as in (0.2, 0.1)."
            require(top > 0 and rest > 0 and top + rest < 1, fault)
        require(0 <= self.validation < 1, f"validation={self.validation}: give a share of the rows in [0, 1).")
        if self.patience is not None:
            require(self.patience >= 1, f"patience={self.patience}: at least 1 round is needed.")
            require(self.validation > 0, "patience needs rows to watch: give validation=0.1, or the like.")

    def digest(self) -> bytes:
        """32 bytes that are equal where the settings are."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).digest()
