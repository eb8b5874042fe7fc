"""Who sees what of a job, in words, read off what its stages and its reducer declare."""

from collections.abc import Collection

from hansa.core.job import Job
from hansa.core.model import Role
from hansa.core.pipeline import Bound
from hansa.privacy.threats import OWN, Adversary, declared


def who_sees_what(job: Job, population: int) -> dict[str, str]:
    """What the server, a worker, whoever fetches the model, and nobody but the worker, see; helpers if there are any.

    Args:
      job: without faults.
      population: clients that could be asked; only what stages bind to depends on it.
    """
    private = [name for name in job.model.shapes() if job.model.role(name) == Role.PRIVATE]
    return {
        "the server": _server(job, job.bind(population)),
        "a worker": "the model of each round" + (", after the stages downwards" if job.down.stages else ""),
        **{str(seen.who): seen.what for seen in declared(job.pipeline.reducer) if seen.who == Adversary.HELPER},
        "whoever fetches the model": "the aggregated model",
        "nobody but the worker": "its data, its memory" + (f", its private tensors {private}" if private else ""),
    }


def hides_workers(job: Job) -> bool:
    """Whether a job promises to hide single contributions, or records, from the server."""
    reducer = job.pipeline.reducer
    own = any(declared(stage) == OWN for stage in job.pipeline.stages)
    return own or job.algorithm.work.dp is not None or (reducer is not None and reducer.sees == "total")


def _server(job: Job, bound: Bound) -> str:
    said = [_contributions(job, bound)]
    noises = {event.mechanism for event in bound.events()}
    if any(noise.startswith("local ") for noise in noises):
        said.append("each with noise that its worker added")
    elif any(noise.endswith(" sum") for noise in noises):
        alone = _sees_each(bound)
        said.append("with a share of the noise, too small to protect it" if alone else "with the workers' noise")
    elif noises:
        said.append("it adds the noise itself before anything is published")
    if job.evaluation.workers != 0:
        said.append("in rounds of evaluation, the metrics on workers' data in the same way")
    if job.query is not None:
        said.append(f"answers to the query ({', '.join(job.answers)})")
    return "; ".join(said)


def _sees_each(bound: Bound) -> bool:
    return bound.reducer is None or bound.reducer.sees == "each"


def _contributions(job: Job, bound: Bound) -> str:
    """What the server sees of messages, before noise."""
    if _sees_each(bound):
        return f"of each worker: {_words(job, bound.signal.parts)}"
    assert bound.reducer is not None
    summed = {name.split("/", 1)[0] for name in bound.summed}
    said = [f"sums over the round's workers, and no single one, of: {_words(job, summed)}"]
    # What a message has under its own name is not hidden, though it is summed like the rest.
    if clear := sorted(set(bound.summed) & set(bound.signal.shapes)):
        said.append(f"but of each worker, in the clear: {', '.join(clear)}")
    if provided := [
        seen.provided for seen in declared(bound.reducer) if seen.who == Adversary.SERVER and seen.provided
    ]:
        said.append(f"provided that {provided[0]}")
    if bound.reducer.helpers:
        said.append(f"its helpers: {', '.join(bound.reducer.helpers)}")
    return "; ".join(said)


def _words(job: Job, parts: Collection[str]) -> str:
    """Parts of a message as people call them, the update first."""
    metrics = f"metrics of local training ({', '.join(job.model.metrics)})"
    words = {"value": "the update", "buffers": "buffers", "weight": "the weight", "metric": metrics}
    return ", ".join(words.get(part, part) for part in sorted(parts, key=lambda part: (part != "value", part)))
