"""What a program would take on a network, from the counters of a run here.

    seconds = work + rounds · latency + 8 · bytes / bandwidth

`work` is what the processor did, on one core; rounds are messages waited for one after another; bytes are those that
the party sends. Of all parties the slowest counts. What overlaps (sending and computing) is added up all the same, so
the truth is rather below.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from hansa.core.errors import ConfigError
from hansa.mpc.report import Report

_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}
_BITS = {"bps": 1.0, "kbps": 1e3, "Mbps": 1e6, "Gbps": 1e9}


@dataclass(frozen=True)
class Network:
    """Links between parties.

    Args:
      latency_s: that a message takes one way.
      bits_per_s: that a party sends.
    """

    latency_s: float
    bits_per_s: float

    @classmethod
    def parse(cls, latency: str, bandwidth: str) -> "Network":
        """From texts such as 40ms and 100Mbps.

        >>> Network.parse("40ms", "100Mbps")
        Network(latency_s=0.04, bits_per_s=100000000.0)
        """
        return cls(_number("latency", latency, _SECONDS), _number("bandwidth", bandwidth, _BITS))

    def seconds(self, rounds: int, sent_bytes: int) -> float:
        """That messages take."""
        return rounds * self.latency_s + 8 * sent_bytes / self.bits_per_s


@dataclass(frozen=True)
class Estimate:
    """What a program would take.

    Args:
      party: the slowest.
      work_s: of its processor.
      rounds: that it waits for.
      sent_bytes: that it sends.
      seconds: altogether.
      operations: name to its calls, rounds, bytes and seconds on the network, the longest first.
    """

    party: str
    work_s: float
    rounds: int
    sent_bytes: int
    seconds: float
    operations: tuple[tuple[str, int, int, int, float], ...]


def estimate(reports: Sequence[Report], network: Network) -> Estimate:
    """The time of a program whose parties gave these reports, on a network."""
    found = []
    for report in reports:
        sent = sum(report.sent_bytes.values())
        lines = [
            (name, line.calls, line.rounds, line.sent_bytes, network.seconds(line.rounds, line.sent_bytes))
            for name, line in report.lines.items()
        ]
        rest_rounds = report.rounds - sum(line.rounds for line in report.lines.values())
        rest_bytes = sent - sum(line.sent_bytes for line in report.lines.values())
        lines.append(("beginning", 1, rest_rounds, rest_bytes, network.seconds(rest_rounds, rest_bytes)))
        seconds = report.busy_seconds + network.seconds(report.rounds, sent)
        lines.sort(key=lambda line: -line[4])
        found.append(Estimate(report.me, report.busy_seconds, report.rounds, sent, seconds, tuple(lines)))
    return max(found, key=lambda each: each.seconds)


def _number(what: str, text: str, units: dict[str, float]) -> float:
    given = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-zµ]+)", text.strip())
    if given is None or given[2] not in units or (what == "bandwidth" and float(given[1]) == 0):
        raise ConfigError(f"{what}='{text}': write a number and a unit of {', '.join(units)}.")
    return float(given[1]) * units[given[2]]
