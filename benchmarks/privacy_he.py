"""Homomorphic sums of 10⁶ values: time to encrypt, add and open, and the bytes that travel.

python benchmarks/privacy_he.py
"""

import time

import numpy as np
import tenseal

from hansa.stages import he_sum


def main() -> None:
    context, values = he_sum._new_context(), 1_000_000
    vector = np.random.default_rng(0).integers(-32767, 32767, values).astype(np.float64)
    chunks = range(0, values, he_sum._SLOTS)
    began = time.perf_counter()
    vectors = [tenseal.ckks_vector(context, vector[at : at + he_sum._SLOTS]) for at in chunks]
    encrypted = time.perf_counter()
    texts = [each.serialize() for each in vectors]
    serialised = time.perf_counter()
    server = he_sum._public_context()
    total = he_sum._added(he_sum._added([], texts, server), texts, server)
    added = time.perf_counter()
    received = [tenseal.ckks_vector_from(context, each.serialize()) for each in total]
    opened = np.concatenate([np.rint(each.decrypt()) for each in received])[:values]
    done = time.perf_counter()
    assert np.array_equal(opened, 2 * vector), "the total is not exact"
    size = sum(map(len, texts))
    print(f"encryption of 10^6 values  {encrypted - began:.2f}  s")
    print(f"serialisation of 10^6 values  {serialised - encrypted:.2f}  s")
    print(f"server, two contributions read and added  {added - serialised:.2f}  s")
    print(f"opening 10^6 values  {done - added:.2f}  s")
    print(f"ciphertext of 10^6 values  {size / 1e6:.1f}  MB  (ratio to float32 {size / (4 * values):.2f})")


if __name__ == "__main__":
    main()
