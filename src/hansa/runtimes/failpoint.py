"""Dying on purpose, for tests: HANSA_FAILPOINT=name[:count] kills this process, as `kill -9` would, at a named step.

    server   after-publish first-reply mid-fold before-charge after-charge
             before-commit mid-commit after-commit after-retire
             reply-N send-N: when an answer of leg N has come, when the first word of leg N was said
    worker   mid-training mid-upload
             leg-N: when it was asked for leg N, from 1 on

`count` is the time at which that step is reached; 1 if it is not given.
"""

import os
import signal

_NAME, _, _COUNT = os.environ.get("HANSA_FAILPOINT", "").partition(":")
_left = int(_COUNT or 1) if _NAME else 0


def failpoint(name: str) -> None:
    """Ends this process at once if the environment asks for it here and now."""
    global _left
    if name == _NAME:
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
