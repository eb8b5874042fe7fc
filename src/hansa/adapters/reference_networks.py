"""The networks that papers on federated learning compare themselves on, as models: see `hansa.tasks`.

| model                | network                                         | parameters | source                      |
| -------------------- | ----------------------------------------------- | ---------- | --------------------------- |
| `character_cnn`      | two convolutions, two dense layers, dropout     | 1,206,590  | Reddi et al. 2021, table 3  |
| `character_dense`    | two hidden layers of 200                        | 209,662    | McMahan et al. 2017         |
| `character_logistic` | one dense layer                                 | 48,670     | LEAF                        |
| `autoencoder`        | 784–1000–500–250–30 and back, sigmoids          | 2,837,314  | Reddi et al. 2021           |
| `resnet18`           | ResNet-18 for 32 × 32 with group norm           | 11,220,132 | Hsu et al. 2019; Reddi 2021 |
| `mobilenet_v2`       | MobileNetV2 with group norm of 8 groups         | 4,821,740  | Hsu, Qi, Brown 2020         |
| `next_character`     | an embedding of 8 and two LSTMs of 256          | 822,570    | McMahan et al. 2017         |
| `next_word`          | an embedding of 96, an LSTM of 670, one layer   | 4,053,428  | Reddi et al. 2021, table 4  |
| `tags`               | logistic regression of each tag on 10,000 words | 5,000,500  | Reddi et al. 2021           |

PyTorch's LSTMs have a second bias, which Keras's lack: four times its width more in each.

Source: Reddi et al.: Adaptive Federated Optimization, 2021, https://arxiv.org/abs/2003.00295; Hsu, Qi, Brown 2020,
https://arxiv.org/abs/2003.08082; Sandler et al.: MobileNetV2, 2018, https://arxiv.org/abs/1801.04381
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hansa.adapters.measures import Sequences
from hansa.adapters.torch import TorchModel

GROUPS = 8  # of group norm, where a paper has them
WORDS = Sequences(length=20, pad=-1)


# -- images


def character_cnn(classes: int = 62) -> TorchModel:
    """EMNIST's characters, images of 1 × 28 × 28."""
    return TorchModel(partial(_character_cnn, classes), F.cross_entropy)


def character_dense(classes: int = 62) -> TorchModel:
    """The same by two hidden layers."""
    return TorchModel(partial(_dense, (784, 200, 200, classes)), F.cross_entropy)


def character_logistic(classes: int = 62) -> TorchModel:
    """The same by one layer."""
    return TorchModel(partial(_dense, (784, classes)), F.cross_entropy)


def autoencoder() -> TorchModel:
    """EMNIST's characters through thirty numbers; the targets are the images."""
    return TorchModel(Autoencoder, F.mse_loss, targets=("x",))


def resnet18(classes: int = 100) -> TorchModel:
    """Images of 3 × 32 × 32; no batch norm, whose statistics differ between clients."""
    return TorchModel(partial(_resnet18, classes), F.cross_entropy)


def mobilenet_v2(classes: int = 2028) -> TorchModel:
    """Images of 3 channels, 32 pixels a side or more."""
    return TorchModel(partial(_mobilenet_v2, classes), F.cross_entropy)


def _character_cnn(classes: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25)),
        *(nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, classes)),
    )


def _dense(widths: Sequence[int]) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for i in range(1, len(widths)):
        layers += [nn.Linear(widths[i - 1], widths[i]), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Autoencoder(nn.Module):
    """Gives images of the shape it was given."""

    def __init__(self) -> None:
        super().__init__()
        widths, layers = (784, 1000, 500, 250, 30, 250, 500, 1000, 784), list[nn.Module]()
        for i in range(1, len(widths)):
            layers += [nn.Linear(widths[i - 1], widths[i])] + ([nn.Sigmoid()] if widths[i] not in (30, 784) else [])
        self.layers = nn.Sequential(nn.Flatten(), *layers)

    def forward(self, x: Any) -> Any:
        """The same images, as far as thirty numbers can tell them."""
        return self.layers(x).view(x.shape)


class Residual(nn.Module):
    """x + f(x); where f changes the shape, x goes through a convolution of one pixel."""

    def __init__(self, inside: nn.Module, past: nn.Module | None = None, after: nn.Module | None = None) -> None:
        super().__init__()
        self.inside, self.past, self.after = inside, past or nn.Identity(), after or nn.Identity()

    def forward(self, x: Any) -> Any:
        """The sum, through what comes after it."""
        return self.after(self.past(x) + self.inside(x))


def _convolved(before: int, after: int, size: int, stride: int = 1, groups: int = 1, norm: int = 2) -> list[nn.Module]:
    convolution = nn.Conv2d(before, after, size, stride, size // 2, groups=groups, bias=False)
    return [convolution, nn.GroupNorm(norm, after)]


def _resnet18(classes: int) -> nn.Module:
    blocks, width = [*_convolved(3, 64, 3), nn.ReLU()], 64
    for wide, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        inside = nn.Sequential(*_convolved(width, wide, 3, stride), nn.ReLU(), *_convolved(wide, wide, 3))
        past = nn.Sequential(*_convolved(width, wide, 1, stride)) if stride > 1 or wide != width else None
        blocks.append(Residual(inside, past, nn.ReLU()))
        width = wide
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def _mobilenet_v2(classes: int) -> nn.Module:
    blocks, width = [*_convolved(3, 32, 3, 2, norm=GROUPS), nn.ReLU6()], 32
    for widen, wide, times, first in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for stride in (first, *[1] * (times - 1)):
            inner = width * widen
            inside = nn.Sequential(
                *([*_convolved(width, inner, 1, norm=GROUPS), nn.ReLU6()] if widen > 1 else []),
                *(*_convolved(inner, inner, 3, stride, inner, GROUPS), nn.ReLU6()),
                *_convolved(inner, wide, 1, norm=GROUPS),
            )
            blocks.append(Residual(inside) if stride == 1 and wide == width else inside)
            width = wide
    blocks += [*_convolved(width, 1280, 1, norm=GROUPS), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*blocks, nn.Dropout(0.2), nn.Linear(1280, classes))


# -- text


def next_character(symbols: int = 90) -> TorchModel:
    """Shakespeare: at each place the next character."""
    return TorchModel(partial(Text, symbols, 8, 256, 2), F.cross_entropy)


def next_word(words: int = 10_004) -> TorchModel:
    """StackOverflow: at each of 20 places the next word; `tasks` says how its metrics are read."""
    return TorchModel(partial(Text, words, 96, 670, 1, 96), F.cross_entropy, measures=WORDS.measures)


def tags(words: int = 10_000, count: int = 500) -> TorchModel:
    """StackOverflow: each tag, from which words occur."""
    return TorchModel(partial(_dense, (words, count)), F.binary_cross_entropy_with_logits)


class Text(nn.Module):
    """An embedding, LSTMs and one or two dense layers: scores (examples, symbols, places) for what comes next."""

    def __init__(self, symbols: int, embedded: int, hidden: int, layers: int, dense: int | None = None) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, embedded)
        self.cells = nn.LSTM(embedded, hidden, layers, batch_first=True)
        self.dense = nn.Linear(hidden, dense) if dense else nn.Identity()
        self.scores = nn.Linear(dense or hidden, symbols)

    def forward(self, x: torch.Tensor) -> Any:
        """Of codes (examples, places)."""
        return self.scores(self.dense(self.cells(self.embedding(x))[0])).transpose(1, 2)
