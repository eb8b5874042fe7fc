"""Settings from text, as the command line and settings files give them: `rounds=50`, `algorithm.work.lr=0.1`."""

import dataclasses
import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from hansa.core.errors import ConfigError, HansaError
from hansa.core.job import Job


def override(job: Job, settings: Mapping[str, str]) -> Job:
    """A job with some fields changed from text, as in `{"rounds": "50", "algorithm.work.lr": "0.1"}`.

    Raises:
      ConfigError: a key names no field (the message lists those there are), or a value is no JSON of its type.
    """
    for key, text in settings.items():
        job = _set(job, key.split("."), key, text)
    return job


def _set(thing: Any, path: Sequence[str], key: str, text: str) -> Any:
    fields = {f.name: f for f in dataclasses.fields(thing)} if dataclasses.is_dataclass(thing) else {}
    if path[0] not in fields:
        near = "".join(f"did you mean '{name}'? " for name in difflib.get_close_matches(path[0], fields, 1))
        raise ConfigError(
            f"unknown key '{key}': {near}{type(thing).__name__} has {', '.join(sorted(fields)) or 'no fields'}."
        )
    old = getattr(thing, path[0])
    if len(path) > 1:
        new = _set(old, path[1:], key, text)
    else:
        try:
            new = json.loads(text) if not isinstance(old, str) else text
        except ValueError:
            new = text
        if isinstance(old, float) and isinstance(new, int) and not isinstance(new, bool):
            new = float(new)
        if isinstance(old, tuple) and isinstance(new, list):
            new = tuple(new)
        if old is not None and new is not None and type(new) is not type(old):
            raise ConfigError(f"{key}={text}: a value of type {type(old).__name__} is expected, as in {old!r}.")
    changes = {path[0]: new}
    if isinstance(thing, Job) and path[0] == "cohort":
        changes["sampling"] = None
    elif isinstance(thing, Job) and thing.cohort is not None and path[0] != "sampling":
        changes["sampling"] = None  # `cohort` makes it again
    elif isinstance(thing, Job) and path[0] == "sampling":
        changes["cohort"] = None
    try:
        return dataclasses.replace(thing, **changes)
    except HansaError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}={text}: {error}") from error
