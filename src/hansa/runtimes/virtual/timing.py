"""Simulated seconds to a target: what ways of training are compared by."""

from collections.abc import Mapping

from hansa.runtimes.history import History
from hansa.runtimes.observe.metric import GROUPS


def curve(history: History, metric: str) -> list[tuple[float, float]]:
    """(seconds since the start, metric) of each round that measured it: centrally, else by workers, else in training.

    One of the three for the whole run: rounds between two evaluations do not fall back on training's metrics.
    """
    group = next(
        (name for name in GROUPS if any(metric in getattr(record, name) for record in history.rounds)), "train"
    )
    points, now = list[tuple[float, float]](), 0.0
    for record in history.rounds:
        now += record.seconds
        seen = getattr(record, group)
        if metric in seen:
            points.append((now, seen[metric]))
    return points


def seconds_to(history: History, metric: str, target: float, *, maximise: bool = True) -> float | None:
    """Seconds until a metric first reaches a target.

    Args:
      history: of any runtime; its seconds are simulated if the runtime was `Virtual`.
      metric: as in the records.
      target: at least this, or at most if not `maximise`.
      maximise: whether more is better.

    Returns:
      Seconds since the start of the run, or None if it was never reached.
    """
    for seconds, value in curve(history, metric):
        if value >= target if maximise else value <= target:
            return seconds
    return None


def table(histories: Mapping[str, History], metric: str, target: float, *, maximise: bool = True) -> str:
    """One line for each way of training: seconds to the target, rounds, answers, and what was wasted."""
    heads = [f"s to {target:g}", "s in all", "rounds", "counted", "late", f"best {metric}"]
    lines = [" " * 24 + "".join(f"{head:>{width}}" for head, width in zip(heads, (12, 12, 8, 9, 6, 16), strict=True))]
    for name, history in histories.items():
        reached = seconds_to(history, metric, target, maximise=maximise)
        values = [value for _, value in curve(history, metric)]
        best = (max if maximise else min)(values) if values else float("nan")
        records = history.rounds
        lines.append(
            f"{name:24}{'never' if reached is None else f'{reached:.0f}':>12}{sum(r.seconds for r in records):12.0f}"
            f"{len(records):8}{sum(r.counted for r in records):9}{sum(r.late for r in records):6}{best:16.4f}"
        )
    return "\n".join(lines)
