"""Linear regression on data that nobody may see: three parties compute on shares what PyTorch computes in the clear.

    pip install 'hansa[mpc,sklearn,plot]'
    python examples/secret_regression.py [--steps 60] [--picture loss.png]

The program is an ordinary PyTorch training loop. Here all three parties run as threads of this process; with
`hansa.mpc.connect` each is a process of its own, and they speak over mutual TLS.
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_diabetes
from torch import nn

import hansa.mpc


def columns() -> tuple[torch.Tensor, torch.Tensor]:
    """Ten measurements of 442 patients, and how their diabetes went on; both scaled."""
    data = load_diabetes()
    x, y = torch.tensor(data.data, dtype=torch.float32), torch.tensor(data.target, dtype=torch.float32)
    return x / x.std(0), ((y - y.mean()) / y.std())[:, None]


def trained(model: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int) -> list[torch.Tensor]:
    """What anybody would write; it runs on tensors and on secrets alike."""
    optimiser, losses = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5), []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--picture", help="a PNG of both losses")
    options = parser.parse_args()
    torch.manual_seed(0)
    clear = nn.Linear(10, 1)
    start = {name: value.clone() for name, value in clear.state_dict().items()}

    def program(session: hansa.mpc.Session) -> tuple[list[float], torch.Tensor, str]:
        hospital, registry, _ = session.names
        x = session.share(lambda: columns()[0], owner=hospital)  # called at its owner alone
        y = session.share(lambda: columns()[1], owner=registry)
        model = nn.Linear(10, 1)
        model.load_state_dict(start)
        session.share_module(model)
        losses = trained(model, x, y, options.steps)
        opened = [float(each) for each in session.reveal(losses)]
        return opened, session.reveal(model.weight.detach()), str(session.report())

    secret, weight, report = hansa.mpc.local(program)[0]
    x, y = columns()
    plain = [float(each) for each in trained(clear, x, y, options.steps)]
    print(f"{'step':>5}{'in the clear':>14}{'on shares':>12}")
    for step in range(0, options.steps, max(1, options.steps // 10)):
        print(f"{step:>5}{plain[step]:>14.5f}{secret[step]:>12.5f}")
    print(f"{options.steps - 1:>5}{plain[-1]:>14.5f}{secret[-1]:>12.5f}")
    print(f"largest difference of a weight: {float((weight - clear.weight.detach()).abs().max()):.1e}\n")
    print(report.split("revealed")[0])
    if options.picture:
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
        axes.plot(plain, label="in the clear", linewidth=4, alpha=0.4)
        axes.plot(secret, label="on shares of three parties", linestyle="--", color="black")
        axes.set(xlabel="step", ylabel="mean squared error")
        axes.legend(frameon=False)
        figure.savefig(options.picture, dpi=120)


if __name__ == "__main__":
    main()
