"""What passes between processes as JSON: a job by the names of what is in it, and a task by its fields.

Nothing is pickled: a job is rebuilt by importing its types and callables, so they must stand at the top of a module.
"""

import dataclasses
import functools
import importlib
from collections.abc import Iterator, Sequence
from typing import Any

from hansa.core.errors import ConfigError, JobError, ProtocolError
from hansa.core.job import Job, canonical
from hansa.core.runtime import Task
from hansa.core.tensors import Tensors


def worker_form(job: Job) -> Any:
    """A job less what only the server uses (evaluation): what another process rebuilds it from.

    Raises:
      JobError: it holds what only lives in this process, as a lambda does.
    """
    form = canonical(job, speed=True)
    del form["fields"]["evaluation"]
    faults = list(_local(form, "job"))
    if faults:
        raise JobError(faults)
    return form


def rebuild(form: Any) -> Any:
    """The opposite of `worker_form` and `canonical`: imports types and callables by name.

    Fields that are left out take their defaults.

    Raises:
      ConfigError: the form holds what only lives in its own process (a lambda, an array), or a name that is not there.
    """
    if not isinstance(form, dict):
        return form
    if "$float" in form:
        return float.fromhex(form["$float"])
    if "$name" in form:
        return named(form["$name"])
    if "$type" in form:
        return named(form["$type"])(**{name: rebuild(value) for name, value in form["fields"].items()})
    if "$sequence" in form:
        return tuple(rebuild(item) for item in form["$sequence"])
    if "$mapping" in form:
        return {rebuild(key): rebuild(value) for key, value in form["$mapping"]}
    if "$partial" in form:
        return functools.partial(rebuild(form["$partial"]), *rebuild(form["args"]), **rebuild(form["keywords"]))
    if "$tensors" in form and not form["$tensors"]:
        return Tensors()
    raise ConfigError(f"{next(_local(form, 'job'), 'this form')}")


def named(name: str) -> Any:
    """The object that `module:qualname` names; ConfigError if it is not there."""
    module, _, path = name.partition(":")
    try:
        return functools.reduce(getattr, path.split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"'{name}' cannot be imported here: {error}.") from error


def _local(form: Any, where: str) -> Iterator[str]:
    """Why a canonical form cannot be rebuilt elsewhere."""
    if isinstance(form, Sequence) and not isinstance(form, str):
        for i, item in enumerate(form):
            yield from _local(item, f"{where}[{i}]")
    elif isinstance(form, dict):
        name = form.get("$name") or form.get("$type")
        if isinstance(name, str) and "<" in name:
            yield f"{where} is '{name}', which lives in this process alone: define it at the top of a module."
        if "$array" in form:
            yield f"{where} is an array, which a job cannot carry to another process: give a function that loads it."
        for key, value in form.items():
            if key not in ("$name", "$type"):
                yield from _local(value, where if key.startswith("$") or key == "fields" else f"{where}.{key}")


def task_form(task: Task) -> dict[str, Any]:
    """A dictionary that `task_of` reads."""
    return dataclasses.asdict(task)


def task_of(form: Any) -> Task:
    """The task that `task_form` wrote; ProtocolError for anything else."""
    kinds = {"version": int, "round": int, "attempt": int, "position": int, "population": int}
    names = {field.name for field in dataclasses.fields(Task)}
    if not isinstance(form, dict) or set(form) != names:
        raise ProtocolError(f"this is no task: it needs exactly the fields {sorted(names)}.")
    for name, value in form.items():
        if type(value) is not kinds.get(name, str):
            raise ProtocolError(f"the task's field '{name}' is a {type(value).__name__}.")
    return Task(**form)
