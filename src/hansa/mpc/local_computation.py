"""A computation at one party, on ordinary tensors: arguments are opened to it alone, results come back as its shares.

@session.local_computation("data-owner-0")
def gradients(weights, bias):              # runs at data-owner-0 alone, with data that only it has
    …
    return gradient_of_weights, gradient_of_bias

first, second = gradients(weights, bias)   # called by all parties; secrets go in and come out
"""

import functools
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from hansa.core.errors import ConfigError, ProtocolError
from hansa.runtimes.mesh.messages import heard

if TYPE_CHECKING:
    from hansa.mpc.session import Session

_ONE, _LIST, _NAMED = "one", "list", "named"


def local_computation(session: "Session", owner: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """What `Session.local_computation` gives."""
    if owner not in session.names:
        raise ConfigError(f"owner='{owner}' is no party: choose one of {', '.join(session.names)}.")

    def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*given: Any) -> Any:
            known = [session.reveal(each, to=owner) for each in given]
            return _shared(session, owner, function(*known) if session.me == owner else None)

        return run

    return decorated


def _shared(session: "Session", owner: str, found: Any) -> Any:
    """Secrets in the form that the owner's results have, which is public."""
    values: list[Any] = []
    if session.me == owner:
        kind, names = _ONE, [""]
        values = [found]
        if isinstance(found, Mapping):
            kind, names, values = _NAMED, list(found), list(found.values())
        elif isinstance(found, list | tuple):
            kind, names, values = _LIST, [str(at) for at in range(len(found))], list(found)
        for peer in session.mesh.peers:
            session.mesh.send(peer, "results", [json.dumps([kind, names]).encode()])
    else:
        kind, names = heard(session.mesh, owner, "results", tuple[str, list[str]])
        if kind not in (_ONE, _LIST, _NAMED) or (kind == _ONE and len(names) != 1):
            raise ProtocolError(f"'{owner}' gives results as '{kind}', {len(names)} of them: it is broken or hostile.")
    secrets = [session.share(value, owner) for value in values or [None] * len(names)]
    if kind == _NAMED:
        return dict(zip(names, secrets, strict=True))
    return secrets if kind == _LIST else secrets[0]
