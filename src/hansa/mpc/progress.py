"""A bar for loops on shares: steps, and the rounds and bytes that they took."""

from collections.abc import Iterable, Iterator, Sized
from typing import TYPE_CHECKING, TypeVar

from hansa.core.runtime import Counters

if TYPE_CHECKING:
    from rich.console import Console

_T = TypeVar("_T")


def bar(
    steps: Iterable[_T], counters: Counters, description: str, console: "Console | None" = None
) -> Iterator[_T]:  # fmt: skip
    """Gives the steps and shows how many are done; without the library `rich` it only gives them."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        yield from steps
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[cost]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    rounds, sent = counters.rounds, sum(counters.sent_bytes.values())
    with Progress(*columns, console=console or Console(stderr=True)) as shown:
        task = shown.add_task(description, total=len(steps) if isinstance(steps, Sized) else None, cost="")
        for step in steps:
            yield step
            megabytes = (sum(counters.sent_bytes.values()) - sent) / 1e6
            shown.update(task, advance=1, cost=f"{counters.rounds - rounds:,} rounds, {megabytes:.2f} MB sent")
