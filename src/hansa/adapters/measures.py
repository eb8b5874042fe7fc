"""Metrics of more than one number, as measures that any model takes: sequences, confusion matrices, domains.

    words = Sequences(length=20, pad=0, oov=(1,), end=2)
    model = TorchModel(net, loss, measures=words.measures)      each measure: one number for each example
    words.read(history.rounds[-1].workers)                      {"accuracy": …, "oov rate": …, …}

Each is a set of plain sums over examples, from which `read` makes what is wanted once all are added up: so parties'
metrics add up to those of all their data together, through every runtime and every secure sum.

Source: the metrics of FedJAX, Ro, Suresh, Wu 2021, https://arxiv.org/abs/2108.02117
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from hansa.adapters.measure import Measures
from hansa.core.errors import require


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """Of sequences of tokens: scores (examples, vocabulary, places) held against targets (examples, places).

    Args:
      length: places at the most.
      pad: the token that fills sequences up, and counts nowhere.
      oov: tokens that stand for words outside the vocabulary.
      end: the token that ends a sequence; None if there is none.

    `read` gives: `accuracy`, of all tokens; `accuracy in vocabulary`, of those that are not `oov`; `oov rate`, their
    share of all tokens; `truncation rate`, the share of sequences without `end`, if there is one; `tokens`, of an
    example on average. What has no tokens has accuracies of NaN.
    """

    length: int
    pad: int = 0
    oov: tuple[int, ...] = ()
    end: int | None = None

    def __post_init__(self) -> None:
        require(self.length >= 1, f"length={self.length}: a sequence has at least one place.")
        clash = self.pad in self.oov or self.pad == self.end or self.end in self.oov
        require(not clash, f"pad={self.pad}, oov={self.oov}, end={self.end}: one token cannot be two of them.")

    @property
    def measures(self) -> Measures:
        """What a model measures."""
        most = float(self.length)
        found: dict[str, Any] = {
            "tokens": (partial(_tokens, pad=self.pad), most),
            "tokens right": (partial(_right, pad=self.pad, oov=()), most),
        }
        if self.oov:
            found["tokens out of vocabulary"] = (partial(_outside, oov=self.oov), most)
            found["tokens right in vocabulary"] = (partial(_right, pad=self.pad, oov=self.oov), most)
        if self.end is not None:
            found["truncated"] = (partial(_truncated, end=self.end), 1.0)
        return found

    def read(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The rates, from the metrics of a record."""
        tokens = metrics["tokens"]
        outside = metrics.get("tokens out of vocabulary", 0.0)
        inside = metrics.get("tokens right in vocabulary", metrics["tokens right"])
        found = {
            "accuracy": _share(metrics["tokens right"], tokens),
            "accuracy in vocabulary": _share(inside, tokens - outside),
            "oov rate": _share(outside, tokens),
            "tokens": tokens,
        }
        return found | ({"truncation rate": metrics["truncated"]} if self.end is not None else {})


@dataclass(frozen=True)
class Confusion:
    """How often each class is taken for which: scores (examples, classes) held against labels (examples,).

    It is classes² metrics, each in its own entry: with hundreds of classes that is more than most models send.

    Args:
      classes: how many.
    """

    classes: int

    def __post_init__(self) -> None:
        require(self.classes >= 2, f"classes={self.classes}: at least two can be confused.")

    @property
    def measures(self) -> Measures:
        """What a model measures."""
        every = range(self.classes)
        return {f"{true} as {said}": (partial(_taken, true=true, said=said), 1.0) for true in every for said in every}

    def read(self, metrics: Mapping[str, float]) -> np.ndarray:
        """The share of all examples that are of the row's class and taken for the column's, (classes, classes)."""
        every = range(self.classes)
        return np.array([[metrics[f"{true} as {said}"] for said in every] for true in every])


@dataclass(frozen=True)
class Domains:
    """Accuracy for each domain: scores (examples, classes) held against (labels, domains), two columns of targets.

    Args:
      names: of the domains 0, 1, ….
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        require(len(set(self.names)) == len(self.names) > 0, f"names={self.names}: give each domain a name of its own.")

    @property
    def measures(self) -> Measures:
        """What a model measures."""
        found: dict[str, Any] = {}
        for number, name in enumerate(self.names):
            found[f"of {name}"] = (partial(_of_domain, number=number), 1.0)
            found[f"right of {name}"] = (partial(_right_of_domain, number=number), 1.0)
        return found

    def read(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The accuracy of each domain; NaN where it has no examples."""
        return {name: _share(metrics[f"right of {name}"], metrics[f"of {name}"]) for name in self.names}


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


# -- one number for each example, in operators that PyTorch's, JAX's and NumPy's arrays all have


def _tokens(outputs: Any, targets: Any, pad: int) -> Any:
    return (targets != pad).sum(1)


def _right(outputs: Any, targets: Any, pad: int, oov: tuple[int, ...]) -> Any:
    right = (outputs.argmax(1) == targets) & (targets != pad)
    for token in oov:
        right = right & (targets != token)
    return right.sum(1)


def _outside(outputs: Any, targets: Any, oov: tuple[int, ...]) -> Any:
    return sum((targets == token).sum(1) for token in oov)


def _truncated(outputs: Any, targets: Any, end: int) -> Any:
    return (targets != end).all(1)


def _taken(outputs: Any, targets: Any, true: int, said: int) -> Any:
    return (targets == true) & (outputs.argmax(1) == said)


def _of_domain(outputs: Any, targets: Any, number: int) -> Any:
    return targets[1] == number


def _right_of_domain(outputs: Any, targets: Any, number: int) -> Any:
    return (targets[1] == number) & (outputs.argmax(1) == targets[0])
