"""One simulated device: how fast it computes and talks, when it is there, and how often it leaves.

A task takes so many seconds, z being standard normal:

    latency + down/rate  +  (examples/speed + steps·step_s)·e^(jitter·z)  +  latency + up/rate
"""

import math
from dataclasses import dataclass, fields

from hansa.core.errors import ConfigError

DAY_H = 24
ALWAYS = (1 << DAY_H) - 1


@dataclass(frozen=True, kw_only=True)
class Device:
    """What one device can do.

    Args:
      examples_per_s: training examples a second; inf if only steps cost time.
      step_s: seconds for each optimiser step, beside its examples.
      down_bytes_per_s, up_bytes_per_s: of its link.
      latency_s: before each message.
      jitter: standard deviation of the logarithm of its computing time from task to task.
      dropout: probability that it leaves a task unfinished.
      hours: of its local day at which it is there, as in "22-6" (over midnight) or "0-8,18-24".
      utc_offset_h: of its local time; simulated time begins at midnight UTC.
      memory_gb: for the training of a model.

    >>> Device(hours="22-6", utc_offset_h=1).hours
    '22-6'
    """

    examples_per_s: float = 100.0
    step_s: float = 0.0
    down_bytes_per_s: float = 1e6
    up_bytes_per_s: float = 5e5
    latency_s: float = 0.1
    jitter: float = 0.0
    dropout: float = 0.0
    hours: str = "0-24"
    utc_offset_h: float = 0.0
    memory_gb: float = math.inf

    def __post_init__(self) -> None:
        for name, (low, high, open_below) in BOUNDS.items():
            value = getattr(self, name)
            if not (isinstance(value, int | float) and low <= value <= high and not (open_below and value == low)):
                raise ConfigError(f"{name}={value!r}: {expected(name)}.")
        hour_mask(self.hours)


# name -> (lowest, highest, whether the lowest itself is too low)
BOUNDS: dict[str, tuple[float, float, bool]] = {
    "examples_per_s": (0, math.inf, True),
    "step_s": (0, 1e9, False),
    "down_bytes_per_s": (0, math.inf, True),
    "up_bytes_per_s": (0, math.inf, True),
    "latency_s": (0, 1e9, False),
    "jitter": (0, 10, False),
    "dropout": (0, 1, False),
    "utc_offset_h": (-12, 14, False),
    "memory_gb": (0, math.inf, True),
}
COLUMNS = tuple(field.name for field in fields(Device))


def expected(name: str) -> str:
    """What a field of a device must be, in words."""
    low, high, open_below = BOUNDS[name]
    above = f"above {low:g}" if open_below else f"at least {low:g}"
    return f"a number {above}" + (f" and at most {high:g}" if math.isfinite(high) else "")


def hour_mask(hours: str) -> int:
    """24 bits, one for each hour of the local day; ConfigError for anything that is no list of hours.

    >>> bin(hour_mask("22-1"))
    '0b110000000000000000000001'
    """
    mask = 0
    for span in str(hours).split(","):
        first, dash, last = span.strip().partition("-")
        if not (dash and first.isdigit() and last.isdigit() and int(first) < DAY_H and int(last) <= DAY_H):
            raise ConfigError(f"hours='{hours}': give hours of the local day, as in '22-6' or '0-8,18-24'.")
        length = (int(last) - int(first)) % DAY_H or (DAY_H if int(first) == 0 and int(last) == DAY_H else 0)
        if not length:
            raise ConfigError(f"hours='{hours}': '{span.strip()}' holds no hour: write '0-24' for the whole day.")
        for hour in range(int(first), int(first) + length):
            mask |= 1 << hour % DAY_H
    return mask


def hour_text(mask: int) -> str:
    """The hours of a mask as text that `hour_mask` reads.

    >>> hour_text(hour_mask("22-6")), hour_text(ALWAYS), hour_text(hour_mask("0-8,18-24"))
    ('22-6', '0-24', '18-8')
    """
    if mask == ALWAYS:
        return "0-24"
    there = [bool(mask >> hour & 1) for hour in range(DAY_H)]
    begins = [hour for hour in range(DAY_H) if there[hour] and not there[hour - 1]]
    spans = []
    for begin in begins:
        end = next(hour for hour in range(begin + 1, begin + DAY_H + 1) if not there[hour % DAY_H])
        spans.append(f"{begin}-{end % DAY_H or DAY_H}")
    return ",".join(spans)
