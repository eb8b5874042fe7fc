"""Scheduling by reinforcement learning: a small network scores devices, and learns from what its plans have cost.

    score = tanh(features · W + b) · v          one network for all devices, so a fleet may have any size
    plan  ~ devices one after another, each with probability ∝ e^score among those that are left
    θ    ← θ + η (b − cost) ∇ log P(plan)       b: the moving average of costs

A plan's cost is its time and its unfairness, each beside what a random plan is expected to have (T and F):

    seconds / T  +  β · variance of how often each device was picked / F

The network practises on the fleet's expected times before a job's first round, where plans cost nothing, and then
learns on from the rounds as they went.

Source: RLDS of Zhou, Liu, Yu, Dong, Jin, Zhang, Dou: Efficient Device Scheduling with Multi-Job Federated Learning,
2022, https://arxiv.org/abs/2112.05928. Ours differs in that the network scores each device by itself, where the paper's
is recurrent, and in its optimiser, which is Adam.
"""

import math
from dataclasses import dataclass

import numpy as np

from hansa.core.errors import ConfigError
from hansa.core.tensors import EMPTY, Tensors
from hansa.runtimes.virtual.schedulers import Scheduler, Trial, View

FEATURES, HIDDEN = 5, 16
CANDIDATES = 50  # of a large fleet, devices that are looked at for each one wanted
PLANS = 16  # tried in each round of practice
EPISODE = 30  # rounds of practice, after which every device counts as never picked
MEMORY = 0.1  # the share of the newest costs in the baseline
CAREFUL = 0.1  # a true round's learning rate beside that of practice: it is one plan, and its time has noise
BETAS = (0.9, 0.999)  # of Adam
LOWEST = -60.0  # of a score, beside the highest: below it, a device is as good as never drawn


@dataclass(frozen=True)
class RLDS(Scheduler):
    """Short rounds that still let every device take part, by a policy that is learnt.

    Args:
      fairness: β ≥ 0, the price of unfairness against time; 0 thinks of time alone.
      practice: rounds of it, before a job's first.
      lr: learning rate η of practice; a true round's is a tenth of it.
      explore: ε, the probability with which a place in a plan is left to chance in practice. In true rounds, where it
        would cost time, the policy explores by being random itself.

    What a job's policy has learnt is in `SharedResult.learnt`, and `Shared(..., learnt=...)` goes on from there, on any
    fleet, without practice.
    """

    fairness: float = 0.5
    practice: int = 300
    lr: float = 0.03
    explore: float = 0.05

    def __post_init__(self) -> None:
        if not (self.fairness >= 0 and math.isfinite(self.fairness)):
            raise ConfigError(f"fairness={self.fairness}: a finite price, at least 0.")
        if self.practice < 0:
            raise ConfigError(f"practice={self.practice}: a number of rounds, at least 0.")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ConfigError(f"lr={self.lr}: a finite learning rate above 0.")
        if not 0 <= self.explore < 1:
            raise ConfigError(f"explore={self.explore}: a probability below 1.")

    def for_job(self, learnt: Tensors = EMPTY) -> "Agent":
        """A policy of its own for each job."""
        return Agent(self, learnt)

    def pick(self, view: View, rng: np.random.Generator) -> np.ndarray:
        """The plan of a policy that has only practised."""
        return self.for_job().pick(view, rng)


class Agent(Scheduler):
    """One job's policy, and what it has learnt.

    Args:
      settings: how it learns.
      learnt: what `learnt()` gave before; empty to begin anew.

    Raises:
      ConfigError: `learnt` is no policy of this shape.
    """

    def __init__(self, settings: RLDS, learnt: Tensors = EMPTY) -> None:
        self._settings = settings
        self._state: dict[str, np.ndarray] | None = _checked(learnt) if len(learnt) else None
        self._last: Drawn | None = None

    def learnt(self) -> Tensors:
        """Weights, moments of the optimiser, steps taken and the baseline; empty before the first round."""
        return Tensors({name: array.copy() for name, array in (self._state or {}).items()})

    def pick(self, view: View, rng: np.random.Generator) -> np.ndarray:
        """A plan drawn by the policy, after practice if it is the first one."""
        if self._state is None:
            self._state = _begun(rng)
            self._practise(view, rng)
        some = rng.choice(view.free, min(len(view.free), CANDIDATES * view.wanted), replace=False)
        scene = Scene(view, some)
        self._last = self._draw(scene, rng, plans=1, explore=0.0)
        plan: np.ndarray = scene.devices[self._last.places[0]]
        return plan

    def observe(self, trial: Trial) -> None:
        """Learns from a round as it went."""
        last, self._last = self._last, None
        if last is None or trial.seconds <= 0:
            return
        cost = trial.seconds / last.scene.scale_s + self._settings.fairness * last.scene.unfairness(last.places)
        self._learn(last, cost, CAREFUL * self._settings.lr)

    def _draw(self, scene: "Scene", rng: np.random.Generator, plans: int, explore: float) -> "Drawn":
        """In each plan the policy's picks, in order, and those of chance after them."""
        scores = _forward(self._weights(), scene.features)[0]
        chosen = scene.wanted - rng.binomial(scene.wanted, explore, plans)
        # Gumbel noise on the scores: their order is that of draws without replacement (Plackett and Luce). Once the
        # policy has picked, what is left is in no order, and the order of chance decides.
        order = np.argsort(-(scores + rng.gumbel(size=(plans, len(scores)))), axis=1)
        chance = rng.random(order.shape)
        chance[np.arange(len(scores)) < chosen[:, None]] = -1.0
        order = np.take_along_axis(order, np.argsort(chance, axis=1, kind="stable"), axis=1)
        return Drawn(scene, order[:, : scene.wanted], chosen)

    def _practise(self, view: View, rng: np.random.Generator) -> None:
        """Rounds of the expected times, among as many free devices as there may be."""
        near = rng.choice(view.free, min(len(view.free), CANDIDATES * view.wanted), replace=False)
        seconds, wanted = view.seconds[near], min(view.wanted, len(near))
        counts = np.zeros(len(near), np.int64)
        for at in range(self._settings.practice):
            if at % EPISODE == 0:
                counts[:] = 0
            free = rng.choice(len(near), int(rng.integers(wanted, len(near) + 1)), replace=False)
            scene = Scene(View(wanted, free, seconds, seconds, seconds, counts), free)
            drawn = self._draw(scene, rng, PLANS, self._settings.explore)
            costs = scene.slowest(drawn.places) + self._settings.fairness * scene.unfairness(drawn.places)
            self._learn(drawn, costs, self._settings.lr)
            counts[free[drawn.places[0]]] += 1

    def _learn(self, drawn: "Drawn", costs: np.ndarray, lr: float) -> None:
        """One step of Adam up the gradient of (b - cost) log P, then the baseline's."""
        state, scene = self._state, drawn.scene
        assert state is not None, "a policy begins before it learns"
        if state["steps"] == 0:
            state["baseline"] = np.asarray(costs.mean())
        scores, hidden = _forward(self._weights(), scene.features)
        slope = (state["baseline"] - costs) @ drawn.slopes(scores) / len(costs)
        gradient = _backward(self._weights(), scene.features, hidden, slope)
        state["steps"] = state["steps"] + 1
        state["momentum"] = BETAS[0] * state["momentum"] + (1 - BETAS[0]) * gradient
        state["second"] = BETAS[1] * state["second"] + (1 - BETAS[1]) * gradient**2
        mean = state["momentum"] / (1 - BETAS[0] ** state["steps"])
        square = state["second"] / (1 - BETAS[1] ** state["steps"])
        state["weights"] = state["weights"] + lr * mean / (np.sqrt(square) + 1e-8)
        state["baseline"] = (1 - MEMORY) * state["baseline"] + MEMORY * costs.mean()

    def _weights(self) -> np.ndarray:
        assert self._state is not None, "a policy begins before it picks"
        return self._state["weights"]


class Scene:
    """Some free devices as the network sees them, and what plans of them are expected to cost."""

    def __init__(self, view: View, devices: np.ndarray) -> None:
        self.devices, self.wanted = devices, min(view.wanted, len(devices))
        count, free = len(view.counts), len(devices)
        self._seconds, counts = view.seconds[devices], view.counts[devices].astype(float)
        self.scale_s = max(_expected_maximum(self._seconds, self.wanted), 1e-12)
        # The variance of all counts after a plan is that sum of squares / count - mean².
        self._more = (2 * counts + 1) / count  # what a device adds to it
        self._fixed = float(np.square(view.counts, dtype=float).sum()) / count
        self._fixed -= float((view.counts.sum() + self.wanted) / count) ** 2
        self._scale_f = max(self._fixed + self.wanted * float(self._more.mean()), 1e-12)
        relative = self._seconds / self.scale_s
        price = self.wanted * (self._more - self._more.mean()) / self._scale_f
        share, need = free / count, self.wanted / free
        self.features = np.column_stack(
            [relative, np.log(relative + 1e-3), price, np.full(free, share), np.full(free, need)]
        ).clip(-5, 5)

    def slowest(self, places: np.ndarray) -> np.ndarray:
        """The longest expected time of each plan, beside a random one's."""
        longest: np.ndarray = self._seconds[places].max(axis=1) / self.scale_s
        return longest

    def unfairness(self, places: np.ndarray) -> np.ndarray:
        """The variance of counts after each plan, beside a random one's."""
        spread: np.ndarray = (self._fixed + self._more[places].sum(axis=1)) / self._scale_f
        return spread


@dataclass(frozen=True)
class Drawn:
    """Plans for one scene, one a row: places among its devices, of which the first `chosen` are the policy's."""

    scene: Scene
    places: np.ndarray
    chosen: np.ndarray

    def slopes(self, scores: np.ndarray) -> np.ndarray:
        """Every device's d log P / d score, for each plan, of the policy's picks one after another.

        At its turn device i is drawn with e^s / Z, Z being the sum over the devices that are left then.
        """
        weight = np.exp(np.maximum(scores - scores.max(), LOWEST))
        policys = np.arange(self.places.shape[1]) < self.chosen[:, None]
        mine = np.where(policys, weight[self.places], 0.0)
        others = np.tile(weight, (len(self.places), 1))
        np.put_along_axis(others, self.places, np.where(policys, 0.0, weight[self.places]), axis=1)
        left = others.sum(axis=1, keepdims=True) + np.cumsum(mine[:, ::-1], axis=1)[:, ::-1]  # Z at each turn
        turns = np.cumsum(np.where(policys, 1 / np.where(policys, left, 1.0), 0.0), axis=1)
        slopes: np.ndarray = -weight * turns[:, -1:]
        picked = np.where(policys, 1 - mine * turns, np.take_along_axis(slopes, self.places, axis=1))
        np.put_along_axis(slopes, self.places, picked, axis=1)
        return slopes


def _expected_maximum(values: np.ndarray, wanted: int) -> float:
    """Of `wanted` different ones drawn at random: the j-th smallest is the largest with C(j-1, k-1) / C(n, k)."""
    count = len(values)
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])  # of factorials
    j = np.arange(wanted, count + 1)
    chances = logs[j - 1] - logs[j - wanted] - logs[wanted - 1]
    total = logs[count] - logs[count - wanted] - logs[wanted]
    return float(np.exp(chances - total) @ np.sort(values)[wanted - 1 :])


# -- the network, its weights as one vector: W (features × hidden), b (hidden), v (hidden)

SHAPES = {"weights": (FEATURES * HIDDEN + 2 * HIDDEN,), "baseline": (), "steps": ()}
SHAPES |= {"momentum": SHAPES["weights"], "second": SHAPES["weights"]}


def _begun(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """W by the rule of Glorot and Bengio (2010); v is 0, so that a policy begins as chance."""
    state = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    bound = math.sqrt(6 / (FEATURES + HIDDEN))
    state["weights"][: FEATURES * HIDDEN] = rng.uniform(-bound, bound, FEATURES * HIDDEN)
    return state


def _checked(learnt: Tensors) -> dict[str, np.ndarray]:
    found = {name: np.array(learnt[name], float) for name in learnt}
    if {name: array.shape for name, array in found.items()} != SHAPES:
        shapes = {name: list(array.shape) for name, array in found.items()}
        raise ConfigError(f"learnt={shapes}: no policy of RLDS; give what SharedResult.learnt holds for the job.")
    if not all(np.isfinite(array).all() for array in found.values()):
        raise ConfigError("learnt holds numbers that are not finite: begin anew without it.")
    return found


def _split(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    first, bias, last = np.split(weights, [FEATURES * HIDDEN, FEATURES * HIDDEN + HIDDEN])
    return first.reshape(FEATURES, HIDDEN), bias, last


def _forward(weights: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores, and the hidden layer."""
    first, bias, last = _split(weights)
    hidden = np.tanh(features @ first + bias)
    return hidden @ last, hidden


def _backward(weights: np.ndarray, features: np.ndarray, hidden: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """The gradient of the scores' sum weighted by `slope`."""
    inside = np.outer(slope, _split(weights)[2]) * (1 - hidden**2)
    return np.concatenate([(features.T @ inside).ravel(), inside.sum(0), hidden.T @ slope])
