"""The solvers, on shares: stochastic gradient descent, Newton's method, and the variances at the end."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from hansa.vertical.glm.meeting import Meeting

if TYPE_CHECKING:
    from hansa.vertical.glm.model import Glm

_HALVINGS = 24  # of the error of an inverse: enough for eigenvalues down to 2^−18 of the trace


@dataclass(frozen=True)
class Problem:
    """What is to be solved: a description, sizes, and the secret columns, labels and weights of rows."""

    glm: "Glm"
    meeting: Meeting
    x: torch.Tensor
    y: torch.Tensor
    weight: torch.Tensor | None

    def rows(self, index: torch.Tensor | slice) -> "Problem":
        """The same of some of its rows."""
        weight = None if self.weight is None else self.weight[index]
        return replace(self, x=self.x[index], y=self.y[index], weight=weight)

    def residuals(self, beta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Predicted means, and their weighted distance from the labels."""
        mean = mean_of(self.glm, self.x @ beta)
        distance = mean - self.y
        return mean, distance if self.weight is None else distance * self.weight

    def gradient(self, beta: torch.Tensor, distance: torch.Tensor) -> torch.Tensor:
        """Of the mean loss over the rows, with the pull of l2."""
        gradient = (self.x.T @ distance) * (1 / self.x.shape[0])
        return gradient + beta * (self.meeting.penalised * self.glm.l2) if self.glm.l2 else gradient

    def curvature(self, mean: torch.Tensor) -> torch.Tensor:
        """Newton's matrix XᵀWX/n + l2, of shape (width, width)."""
        w = self.weight
        if self.glm.family == "logistic":
            w = mean * (1 - mean) if w is None else mean * (1 - mean) * w
        elif self.glm.family == "poisson":
            w = mean
        elif self.glm.family == "multinomial":
            w = 0.5 if w is None else w * 0.5
        matrix = (self.x.T @ (self.x if w is None else self.x * w)) * (1 / self.meeting.rows)
        return matrix + torch.diag(self.meeting.penalised[:, 0] * self.glm.l2) if self.glm.l2 else matrix


def mean_of(glm: "Glm", scores: torch.Tensor) -> torch.Tensor:
    """The family's inverse link."""
    if glm.family == "logistic":
        return torch.sigmoid(scores)
    if glm.family == "poisson":
        return torch.exp(scores)
    return torch.softmax(scores, 1) if glm.family == "multinomial" else scores


def sgd(problem: Problem, state: torch.Tensor, done: int) -> Iterator[torch.Tensor]:
    """Yields the coefficients after each epoch, and beside them their velocity if there is momentum.

    Rows come in a public random order; less than a batch is left out, another part each time.
    """
    glm, meeting = problem.glm, problem.meeting
    generator = torch.Generator().manual_seed(glm.seed)
    size, outputs = min(glm.batch_size, meeting.rows), meeting.outputs
    beta, velocity = state[:, :outputs], state[:, outputs:] if state.shape[1] > outputs else None
    for epoch in range(glm.epochs):
        order = torch.randperm(meeting.rows, generator=generator)
        if epoch < done:
            continue
        shuffled = problem.rows(order)
        for at in range(0, meeting.rows - size + 1, size):
            batch = shuffled.rows(slice(at, at + size))
            gradient = batch.gradient(beta, batch.residuals(beta)[1])
            if glm.momentum:
                velocity = gradient if velocity is None else velocity * glm.momentum + gradient
                gradient = velocity
            beta = beta - gradient * glm.lr
            if glm.l1:
                beta = _threshold(beta, meeting.penalised * (glm.lr * glm.l1))
        yield beta if velocity is None else torch.cat([beta, velocity], 1)


def newton(problem: Problem, state: torch.Tensor, done: int) -> Iterator[torch.Tensor]:
    """Yields the coefficients after each whole step; the multinomial's matrix is Böhning's bound, inverted once."""
    fixed = problem.glm.family in ("linear", "multinomial")
    inverse, beta = None, state
    for _ in range(done, problem.glm.epochs):
        mean, distance = problem.residuals(beta)
        gradient = problem.gradient(beta, distance)
        if inverse is None or not fixed:
            inverse = _inverse(problem.curvature(mean))
        beta = beta - inverse @ gradient
        yield beta


def variance(problem: Problem, beta: torch.Tensor) -> torch.Tensor:
    """The variance of each coefficient, times n, of shape (width, outputs): diagonals of the inverse at the end."""
    meeting = problem.meeting
    mean, distance = problem.residuals(beta)
    if problem.glm.family == "multinomial":
        return _of_classes(problem, mean)
    inverse = _inverse(problem.curvature(mean))
    diagonal = (inverse * torch.eye(meeting.width)).sum(1, keepdim=True)
    if problem.glm.family == "linear":
        diagonal = diagonal * ((distance * distance).sum() * (1 / (meeting.rows - meeting.width)))
    return diagonal


def _of_classes(problem: Problem, mean: torch.Tensor) -> torch.Tensor:
    """Of a multinomial model, whose coefficients sum to 0 over the classes.

    Its matrix has the blocks Xᵀ diag(pₖ (1[k = l] − pₗ)) X / n, plus l2 where k = l. In the direction in which all
    classes move alike it is l2 alone, so that it has no inverse: c is added in that direction, and what comes of it,
    1 / (K (c + l2)), is taken off again.
    """
    glm, meeting, classes = problem.glm, problem.meeting, problem.meeting.outputs
    c, pull = 0.25, meeting.penalised[:, 0] * glm.l2
    weight = problem.weight
    rows = []
    for k in range(classes):
        blocks = []
        for other in range(classes):
            w = mean[:, k : k + 1] * (float(k == other) - mean[:, other : other + 1])
            block = (problem.x.T @ (problem.x * (w if weight is None else w * weight))) * (1 / meeting.rows)
            alike = torch.eye(meeting.width) * (c / classes)
            blocks.append(block + (torch.diag(pull) + alike if k == other else alike))
        rows.append(torch.cat(blocks, 1))
    inverse = _inverse(torch.cat(rows))
    diagonal = (inverse * torch.eye(classes * meeting.width)).sum(1).reshape(classes, meeting.width).T
    return diagonal - (1 / (classes * (c + pull)))[:, None]


def _threshold(beta: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """The coefficients, nearer to 0 by `by`, and 0 where they were within it."""
    both = torch.relu(torch.stack([beta - by, -beta - by]))
    return both[0] - both[1]


def _inverse(matrix: torch.Tensor) -> torch.Tensor:
    """The inverse of a positive definite matrix, by products alone.

    V ← V(2 − AV) from V = 1/trace(A) halves the error's exponent at each step once an eigenvalue is found; an
    eigenvalue λ takes log₂(trace/λ) steps to be found. Rounding errors correct themselves.

    Source: Schulz 1933, Iterative Berechnung der reziproken Matrix, https://doi.org/10.1002/zamm.19330130111
    """
    eye = torch.eye(len(matrix))
    trace = (matrix * eye).sum()
    inverse = eye * (1 / trace)
    for _ in range(_HALVINGS):
        inverse = inverse @ (2 * eye - matrix @ inverse)
    return inverse
