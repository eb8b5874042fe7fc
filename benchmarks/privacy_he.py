"""Homomorphic sums of 10⁶ values: time to encrypt, add and open, and the bytes that travel.

python benchmarks/privacy_he.py
"""

import time

import numpy as np
import tenseal
from figures import figure

from hansa.stages import he_sum


def main() -> None:
    context, values = he_sum._new_context(), 1_000_000
    vector = np.random.default_rng(0).integers(-32767, 32767, values).astype(np.float64)
    chunks = range(0, values, he_sum._SLOTS)
    began = time.process_time()
    vectors = [tenseal.ckks_vector(context, vector[at : at + he_sum._SLOTS]) for at in chunks]
    encrypted = time.process_time()
    texts = [each.serialize() for each in vectors]
    serialised = time.process_time()
    server = he_sum._public_context()
    total = he_sum._added(he_sum._added([], texts, server), texts, server)
    added = time.process_time()
    received = [tenseal.ckks_vector_from(context, each.serialize()) for each in total]
    opened = np.concatenate([np.rint(each.decrypt()) for each in received])[:values]
    done = time.process_time()
    assert np.array_equal(opened, 2 * vector), "the total is not exact"
    size = sum(map(len, texts))
    figure("HE: encryption of 10^6 values", encrypted - began, "s", "target 0.7")
    figure("HE: serialisation of 10^6 values", serialised - encrypted, "s")
    figure("HE: server, two contributions read and added", added - serialised, "s")
    figure("HE: opening 10^6 values", done - added, "s")
    figure("HE: ciphertext of 10^6 values", size / 1e6, "MB", f"{size / (4 * values):.2f} x float32, target 8")


if __name__ == "__main__":
    main()
