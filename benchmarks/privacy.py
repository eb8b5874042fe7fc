"""All figures of private aggregation, each beside its peer, bound or target.

    python benchmarks/privacy.py [SECTION …]      all without arguments, in about half an hour

    epsilon       ε against published vectors, to the last digit
    noise         what protective noise costs, and how much of it is needed
    secure        SecureSum without a network: 100 clients of a complete graph, 1,000 of a chosen one, expansion
    rounds        a secure round over gRPC, 20 worker processes, beside the plain sum
    he            homomorphic sums of 10⁶ values
    compression   time, loss, and MNIST with a sixtieth of the bytes (HANSA_DATA)
    records       DP-SGD beside plain SGD, and MNIST at a published ε (HANSA_DATA)

Each section is a program of its own, `privacy_SECTION.py`, with its options. A section that cannot run here says why,
and the others go on. Run it on a machine that does nothing else; ratios are worth more than seconds.
"""

import subprocess
import sys
import time
from pathlib import Path

from figures import figure

HERE = Path(__file__).parent
SECTIONS = {
    "epsilon": ["privacy_epsilon.py"],
    "noise": ["privacy_noise.py"],
    "secure": ["privacy_secure_sum.py"],
    "rounds": ["privacy_rounds.py"],
    "he": ["privacy_he.py"],
    "compression": ["privacy_compression.py"],
    "records": ["privacy_records.py"],
}


def main(chosen: list[str]) -> int:
    """Runs sections as processes, so that one's memory and threads do not weigh on the next; says what failed."""
    if unknown := sorted(set(chosen) - set(SECTIONS)):
        print(f"{', '.join(unknown)}: no such section; choose from {', '.join(SECTIONS)}.", file=sys.stderr)
        return 2
    failed = []
    for name in chosen or SECTIONS:
        print(f"── {name}", flush=True)
        began = time.perf_counter()
        program, *options = SECTIONS[name]
        done = subprocess.run([sys.executable, str(HERE / program), *options], check=False)
        figure(f"section {name}", time.perf_counter() - began, "s", "" if done.returncode == 0 else "FAILED, see above")
        failed += [name] if done.returncode else []
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
