"""What a secure round costs in a deployed federation, beside the plain sum in the same run.

    python benchmarks/privacy_rounds.py [--workers 20] [--parameters 1000000] [--rounds 5]

Server and workers are processes of this machine, over mutual TLS 1.3, with signed legs and synced records. The jobs run
in one federation, in turns; their workers compute nothing, so that what is measured is the round itself.
"""

import argparse
import statistics
from pathlib import Path

from deploy import Peak, federation, write
from figures import figure
from tests.runtimes.federation import Federation

MORE = """
from hansa.stages.clip import Clip
from hansa.stages.quantise import Quantise
from hansa.stages.secure_sum import SecureSum
"""
PIPELINES = {
    "plain sum": "Pipeline([UniformMean()], Sum())",
    "plain sum of integers": "Pipeline([Clip(1.0), UniformMean(), Quantise(bits=16)], Sum())",
    "secure sum": "Pipeline([Clip(1.0), UniformMean(), Quantise(bits=16)], SecureSum())",
}


def job(folder: Path, pipeline: str, parameters: int, workers: int, rounds: int) -> Path:
    """The no-op job of benchmarks/deploy.py with another pipeline."""
    path = write(folder, [parameters // 8] * 8, workers, rounds)
    path.write_text(MORE + path.read_text().replace(PIPELINES["plain sum"], pipeline))
    return path


def rounds_of(running: Federation, path: Path) -> tuple[list[float], float]:
    """Seconds of each round but the first, which loads the job; and megabytes of the server above idle."""
    assert running.server is not None
    peak = Peak(running.server.popen.pid)
    run = running.submit(path)
    status = running.wait(run, 900, poll_s=0.5)
    assert status["state"] == "done", f"{status}\n{running.output}"
    with running.client() as client:
        seconds = [event["record"]["seconds"] for event in client.watch(run) if "record" in event]
    return seconds[1:], peak.end()


def main() -> None:
    """Prints the lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=20)
    parser.add_argument("--parameters", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turns", type=int, default=2)
    given = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in PIPELINES}
    above = dict.fromkeys(PIPELINES, 0.0)
    with federation(given.workers) as running:
        for name in [*PIPELINES] * given.turns:  # in turns, since the machine is not as busy all the time
            path = job(running.folder / "job", PIPELINES[name], given.parameters, given.workers, given.rounds + 1)
            times, peak = rounds_of(running, path)
            seconds[name] += times
            above[name] = max(above[name], peak)
    plain = statistics.median(seconds["plain sum"])
    for name, times in seconds.items():
        value = statistics.median(times)
        target = ", target 2.5" if name == "secure sum" else ""
        more = f"{min(times):.2f} to {max(times):.2f} s, server {above[name]:.0f} MB above idle"
        what = f"{name}, {given.workers} processes, {given.parameters} parameters"
        figure(f"a round of the {what}", value, "s", f"{value / plain:.2f} x the plain sum{target}; {more}")


if __name__ == "__main__":
    main()
