"""How rules for splitting data differ: a table of measures, and a picture of one rule.

    pip install 'hansa[data,plot]'
    python examples/partitions.py [picture.png]

The table has the smallest and the largest client, and means over clients: how many labels one has, the entropy of its
labels in bits, and how far they are from those of all data (EMD, 0 to 2; Jensen–Shannon divergence, 0 to 1).
"""

import sys

from hansa.data import (
    IID,
    Dirichlet,
    InnerDirichlet,
    Pathological,
    QuantitySkew,
    Shards,
    Sizes,
    digits,
    heterogeneity,
    partition,
    plot_labels,
)

RULES = {
    "IID()": IID(),
    "QuantitySkew(power=1.2)": QuantitySkew(power=1.2),
    "Sizes('linear')": Sizes("linear"),
    "Dirichlet(alpha=100)": Dirichlet(alpha=100),
    "Dirichlet(alpha=1)": Dirichlet(alpha=1),
    "Dirichlet(alpha=0.1)": Dirichlet(alpha=0.1),
    "InnerDirichlet(alpha=0.1)": InnerDirichlet(alpha=0.1),
    "Pathological(classes=2)": Pathological(classes=2),
    "Shards(per_client=2, uneven=True)": Shards(per_client=2, uneven=True),
}


def main(picture: str = "labels.png") -> None:
    data = digits()
    print(f"{len(data)} digits among 20 clients\n")
    print(f"{'rule':36}{'examples':>12}{'labels':>8}{'entropy':>9}{'EMD':>6}{'JS':>6}")
    for name, rule in RULES.items():
        found = heterogeneity.summary(partition(data, rule, clients=20, seed=1))
        sizes = f"{found.smallest} to {found.largest}"
        print(f"{name:36}{sizes:>12}{found.labels:8.1f}{found.entropy:9.2f}{found.emd:6.2f}{found.jensen_shannon:6.2f}")
    plot_labels(partition(data, Dirichlet(alpha=0.1), clients=20, seed=1), path=picture)
    print(f"\nDirichlet(alpha=0.1) is drawn in {picture}")


if __name__ == "__main__":
    main(*sys.argv[1:])
