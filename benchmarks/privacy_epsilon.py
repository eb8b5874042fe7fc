"""ε against the published vectors, to the last printed digit.

    python benchmarks/privacy_epsilon.py

The vectors are dp-accounting 0.6.0's for the Poisson-sampled Gaussian, add or remove one client. Each line's ratio is
exact: 1 or not.
"""

from collections import Counter

from figures import figure

from hansa.core.ledger import Event
from hansa.privacy.accountant import cost

VECTORS = (
    (0.01, 4.0, 10_000, 1e-5, 1.03549, 0.94700),
    (256 / 60_000, 1.1, 14_062, 1e-5, 2.59656, 2.38169),
    (250 / 60_000, 1.3, 3_600, 1e-5, 0.94220, 0.85303),
    (5000 / 763_430, 1.0, 5_000, 1e-9, 4.18329, 3.89883),
    (1.0, 1.0, 1, 1e-5, 4.72851, 4.37718),
    (0.02, 0.8, 2_500, 1e-5, 11.34847, 10.31541),
)
"""Rate, noise multiplier, steps, δ; ε by RDP and by PLD."""


def main() -> None:
    """Prints the lines; fails if a digit differs."""
    wrong = []
    for rate, noise, steps, delta, rdp, pld in VECTORS:
        kind = "poisson" if rate < 1 else "none"
        event = Event(mechanism="gaussian", noise_multiplier=noise, sampling=kind, rate=rate)
        spent = cost(Counter({event: steps}), delta)
        for by, found, published in (("RDP", spent.rdp, rdp), ("PLD", spent.pld, pld)):
            assert found is not None
            same = f"{found:.5f}" == f"{published:.5f}"
            name = f"ε by {by}, q={rate:.4g} σ={noise:g} T={steps} δ={delta:g}"
            figure(name, found, "", f"published {published:.5f}: {'equal' if same else 'DIFFERENT'}")
            wrong += [] if same else [name]
    if wrong:
        raise SystemExit(f"{len(wrong)} differ: {wrong}")


if __name__ == "__main__":
    main()
