"""The iris tutorial as one job: a network 4-32-32-3 without biases (1,248 numbers), trained by alice and bob."""

import math

import torch
from torch import nn
from torch.nn import functional as F

import data
import hansa


class Net(nn.Module):
    """Three dense layers; each weight starts as a standard normal over the root of its matrix's size."""

    def __init__(self) -> None:
        super().__init__()
        self.w_xh = nn.Parameter(torch.randn(4, 32) / math.sqrt(4 * 32))
        self.w_hh = nn.Parameter(torch.randn(32, 32) / math.sqrt(32 * 32))
        self.w_hy = nn.Parameter(torch.randn(32, 3) / math.sqrt(32 * 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(torch.relu(x @ self.w_xh) @ self.w_hh) @ self.w_hy


job = hansa.Job(
    name="iris",
    model=hansa.TorchModel(Net, loss=F.cross_entropy),
    algorithm=hansa.FedAvg(hansa.LocalWork(optimiser="adam", lr=1e-3, epochs=10)),  # no batch size: all at once
    pipeline=hansa.Pipeline([hansa.WeightedMean()], hansa.Sum()),
    cohort=2,
    rounds=40,
    evaluation=hansa.Evaluation(data=data.validation, best="accuracy", maximise=True),
    seed=1,
)

clients = hansa.Clients.of({"alice": data.alice, "bob": data.bob})  # for `hansa simulate`; a federation has workers
