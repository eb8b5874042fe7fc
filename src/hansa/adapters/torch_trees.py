"""The network over clients' trees: one convolution whose kernel is a client's trees, and one layer over the clients.

    (rows, 1, K·M) ─ convolution, kernel M, stride M ─► (rows, channels, K) ─ ReLU ─► K·channels ─ linear ─► (rows,)

Source: Ma, Qiu, Beutel, Lane: Gradient-less Federated Gradient Boosting Trees with Learnable Learning Rates, 2023,
figure 2, https://arxiv.org/abs/2304.07537
"""

from hansa.core.errors import MissingExtra

try:
    import torch
except ModuleNotFoundError as error:
    raise MissingExtra("TreeConvolution", "torch", "torch") from error


class TreeConvolution(torch.nn.Module):
    """Weighs what `ClientTrees.outputs` gives, for `TreeNetwork`.

    Args:
      clients: K.
      trees: M, of each client.
      channels: of the convolution; the paper's is 64.
    """

    def __init__(self, clients: int, trees: int, channels: int = 64) -> None:
        super().__init__()
        self.rates = torch.nn.Conv1d(1, channels, kernel_size=trees, stride=trees)
        self.clients = torch.nn.Linear(channels * clients, 1)

    def forward(self, said: torch.Tensor) -> torch.Tensor:
        """Margins, shape (rows,), of tree outputs (rows, 1, clients · trees)."""
        weighed: torch.Tensor = self.clients(torch.relu(self.rates(said)).flatten(1))
        return weighed[:, 0]
