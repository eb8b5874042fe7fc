"""`hansa audit`: attacks a job with what its server and the readers of its model will have, and says what came of it.

    reading       one client's examples out of what leaves it: closed form, gradient matching, words of an embedding
    membership    who was in the training data, from the last model alone (LiRA)
    canaries      ε from below, where the job promises one from above
    lying server  one client's contribution out of a secure sum, by a server that does not follow the protocol

Each is run where it applies; where not, the report says why. An audit finds what these attacks find: what it does not
find, another may.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hansa.app.audit_report import Finding, Verdict, curve, histogram, pairs, write
from hansa.app.folder import check_files
from hansa.app.jobs import read_settings
from hansa.app.terminal import emit, hint, say
from hansa.core.data import Clients, Dataset
from hansa.core.errors import ConfigError, DataError, HansaError, MissingExtra
from hansa.core.job import Job
from hansa.runtimes.jobfile import clients_of, job_of, load_module
from hansa.testing.attacks import canaries, eavesdrop, linear, membership, words

DELTA = 1e-5  # where the job names none
READ = 0.25  # of a guesser's error: an example recovered better than that counts as read
FOUND = 0.05  # of members, beyond chance in area under the curve: above it membership counts as leaking


def audit(
    job: Path, *, out: Path, clients: int | None = None, settings: Sequence[str] = (), config: Path | None = None,
    client: str | None = None, examples: int = 1, iterations: int = 1000, shadows: int = 16, birds: int = 200,
    strict: bool = False,
) -> None:  # fmt: skip
    """Runs `hansa audit`; arguments are its options.

    Raises:
      HansaError: a promise of the job is broken, or with `strict` something leaks; after the report is written.
      ConfigError: no attack applies to the job; or an option is wrong.
    """
    if examples < 1:
        raise ConfigError(f"--examples {examples}: the attacked client holds at least 1.")
    for option, count in (("iterations", iterations), ("shadows", shadows), ("canaries", birds)):
        if count < 1:  # an attack of no effort finds nothing, and would be reported as held
            raise ConfigError(f"--{option} {count}: at least 1.")
    given = read_settings(settings, config)
    module = load_module(job)
    loaded, people = job_of(module, given), clients_of(module, clients)
    loaded.check(len(people))
    check_files(out, "--out")
    findings = []
    for name, run in (
        ("reading", lambda: reading(loaded, people, client, examples, iterations)),
        ("membership", lambda: guessing(loaded, people, shadows)),
        ("canaries", lambda: refuting(loaded, people, birds)),
        ("lying server", lambda: lying(loaded, people)),
    ):
        hint(f"{name} …")
        findings.append(_tried(name, run))
    if all(finding.verdict == Verdict.NOT_RUN for finding in findings):
        reasons = "; ".join(f"{finding.attack}: {finding.says}" for finding in findings)
        raise ConfigError(f"no attack applies to this job ({reasons})")
    for finding in findings:
        emit("finding", **finding.to_json())
        say(f"{finding.attack:12} {finding.verdict:8} {finding.says}")
    path = write(out, loaded, len(people), findings)
    emit("report", path=str(path))
    say(f"written to {path}")
    broken = [f.attack for f in findings if f.verdict == Verdict.BROKEN]
    leaks = [f.attack for f in findings if f.verdict == Verdict.LEAKS]
    if broken:
        raise HansaError(f"{', '.join(broken)}: the job is proven to be less private than it says; see {path}.")
    if strict and leaks:
        raise HansaError(f"{', '.join(leaks)}: --strict, and this job leaks; see {path}.")


def _tried(name: str, run: Callable[[], Finding]) -> Finding:
    try:
        return run()
    except (ConfigError, DataError, MissingExtra) as why:
        return Finding(attack=name, verdict=Verdict.NOT_RUN, says=str(why))


# ── reading a client


def reading(job: Job, people: Clients, client: str | None, examples: int, iterations: int) -> Finding:
    """A client that holds only so many examples, and what its server reads of them in the first round."""
    victim = client or people.ids[0]
    truth = _some(people.open(victim), victim, examples)
    alone = getattr(job.pipeline.reducer, "sees", "") == "each"
    if alone:
        change, whose = eavesdrop.of_one(job, truth, len(people)), "its own update"
    else:
        names = sorted({victim, *people.ids[: math.ceil(job.who.expected(len(people)))]})
        everybody = {name: _some(people.open(name), name, examples) for name in names}
        change, whose = eavesdrop.of_all(job, Clients.of(everybody)), f"the sum of {len(names)} clients"
    x = truth[_inputs(job)[0]]
    if x.dtype.kind in "iu":
        return _read_words(job, change, x, whose)
    shape, attempts, reasons = x.shape[1:], dict[str, np.ndarray](), list[str]()
    if examples == 1 and (found := _closed_form(change, math.prod(shape))) is not None:
        attempts["closed form of the first dense layer"] = found.reshape(1, *shape)
    try:
        attempts["gradient matching"] = _matched(job, change, truth, people, iterations)
    except (ConfigError, MissingExtra) as why:
        reasons.append(str(why))
    if not attempts:
        raise ConfigError("; ".join(reasons))
    errors = {name: _error(found, x) for name, found in attempts.items()}
    best = min(errors, key=lambda name: errors[name])
    blind = _blind(people, job)
    share = errors[best] / blind if blind else math.inf
    read = share < READ
    part = f"{100 * share:.0f}" if share >= 1 else f"{100 * share:.2g}"
    says = (
        f"from {whose}, {best}: mean squared error {errors[best]:.2g}, {part} % of what guessing the "
        f"average example gives: {'the example is read' if read else 'it is not read'}"
    )
    return Finding(
        attack="reading", verdict=Verdict.LEAKS if read else Verdict.HOLDS, says=says,
        numbers={"client": victim, "examples": examples, "error": errors, "blind": blind, "not tried": reasons},
        picture=pairs(x, attempts[best], image_shape(x)),
    )  # fmt: skip


def _some(data: Any, name: str, examples: int) -> Dataset:
    if not isinstance(data, Dataset):
        raise ConfigError(f"'{name}' holds a {type(data).__name__}: rows can be taken of a Dataset alone.")
    if len(data) < examples:
        raise ConfigError(f"'{name}' has {len(data)} examples, fewer than --examples {examples}.")
    return data.take(np.arange(examples))


def _inputs(job: Job) -> Sequence[str]:
    """The columns that a model reads, where it names them."""
    named = getattr(job.model, "inputs", None)
    return named if isinstance(named, tuple) else ("x",)


def _closed_form(change: Any, width: int) -> np.ndarray | None:
    try:
        return linear.recover(change, width)
    except ConfigError:
        return None


def _matched(job: Job, change: Any, truth: Dataset, people: Clients, iterations: int) -> np.ndarray:
    """Inverting gradients, with what a server knows: shape, range and number of examples."""
    try:
        from hansa.adapters.torch import TorchModel
        from hansa.testing.attacks.matching import InvertingGradients, Seen
    except MissingExtra:
        raise ConfigError("gradient matching needs torch, and a TorchModel") from None
    if not isinstance(job.model, TorchModel):
        raise ConfigError(f"gradient matching needs a TorchModel, not a {type(job.model).__name__}")
    params, x = job.model.init(job.seed), truth[_inputs(job)[0]]
    bias = [name for name in linear.in_order(change) if name.endswith("bias") and change[name].ndim == 1]
    if not bias:
        raise ConfigError("gradient matching reads labels from the last layer's bias, which this model has not")
    seen = Seen(
        model=job.model, params=params, difference=change, work=job.algorithm.work, examples=len(x), shape=x.shape[1:],
        classes=len(change[bias[-1]]),
    )  # fmt: skip
    box = (float(min(0.0, x.min())), float(max(1.0, x.max())))
    return InvertingGradients(iterations=iterations, image=image_shape(x), box=box).recover(seen).x


def _read_words(job: Job, change: Any, tokens: np.ndarray, whose: str) -> Finding:
    vocabulary = {name: shape[0] for name, (shape, _) in change.shapes.items() if len(shape) == 2}
    fitting = [name for name, size in vocabulary.items() if size > tokens.max() and "emb" in name.lower()]
    fitting = fitting or [name for name, size in vocabulary.items() if size > tokens.max()]
    if not fitting:
        raise ConfigError("its inputs are whole numbers, but no tensor of the model has a row for each of them")
    read = words.leak(words.words_in(np.asarray(change[fitting[0]])), np.unique(tokens), vocabulary[fitting[0]])
    says = (
        f"from {whose}, rows of '{fitting[0]}' that moved: {100 * read.recall:.0f} % of the words that occur, and "
        f"{100 * read.false_alarms:.0f} % of those that do not"
    )
    verdict = Verdict.LEAKS if read.advantage > 0.5 else Verdict.HOLDS
    return Finding(attack="reading", verdict=verdict, says=says, numbers=vars(read))


def _error(found: np.ndarray, truth: np.ndarray) -> float:
    """The mean squared error of what comes nearest to each true example, averaged."""
    apart = (found.reshape(len(found), 1, -1) - truth.reshape(1, len(truth), -1).astype(np.float64)) ** 2
    return float(apart.mean(axis=2).min(axis=0).mean())


def _blind(people: Clients, job: Job) -> float:
    """The error of who guesses the average example, from the first clients' data."""
    first = [np.asarray(people.open(name)[_inputs(job)[0]], np.float64) for name in people.ids[:10]]  # type: ignore[index]
    x = np.concatenate(first)
    return float(((x - x.mean(axis=0)) ** 2).mean())


def image_shape(x: np.ndarray) -> tuple[int, int] | None:
    """Height and width of an example: its last two axes, or the square that a flat one may be; None for neither.

    >>> image_shape(np.zeros((3, 1, 28, 20))), image_shape(np.zeros((3, 64))), image_shape(np.zeros((3, 13)))
    ((28, 20), (8, 8), None)
    """
    if x.ndim >= 3:
        return (int(x.shape[-2]), int(x.shape[-1]))
    side = math.isqrt(x.shape[-1])
    return (side, side) if x.ndim == 2 and side * side == x.shape[-1] and side >= 5 else None


# ── guessing who was there


def guessing(job: Job, people: Clients, shadows: int) -> Finding:
    """LiRA against the job's last model."""
    if "accuracy" not in job.model.metrics:
        raise ConfigError("it is tested on classifiers, whose loss is a cross-entropy")
    found = membership.against_job(job, people, models=shadows, tell=lambda run: _run_done(run, shadows))
    leaks = found.auc - 0.5 > FOUND
    says = (
        f"of the members {100 * found.tpr(0.01):.1f} % are found at 1 % false alarms, {100 * found.tpr(0.1):.0f} % at "
        f"10 %; area under the curve {found.auc:.3f} (chance: 0.5), {shadows} runs of the job"
    )
    false, true = found.roc()
    return Finding(
        attack="membership", verdict=Verdict.LEAKS if leaks else Verdict.HOLDS, says=says,
        numbers={"auc": found.auc, "tpr at 0.1 %": found.tpr(0.001), "tpr at 1 %": found.tpr(0.01)},
        picture=curve(false, true),
    )  # fmt: skip


def _run_done(run: int, shadows: int) -> None:
    if run % max(1, shadows // 4) == 0:
        hint(f"  {run} of {shadows} runs")


# ── holding a job to its word


def refuting(job: Job, people: Clients, birds: int) -> Finding:
    """Canaries, against the ε that the job accounts."""
    found = canaries.audit(job, people, canaries=birds, delta=job.delta or DELTA)
    says = (
        f"{found.right} of {found.guesses} guesses about {found.canaries} canaries are right: ε is at least "
        f"{found.lower:.3g} with {100 * found.confidence:.0f} % confidence, and accounted as at most "
        f"{found.accounted:.3g} at δ = {found.delta:g}"
    )
    return Finding(
        attack="canaries", verdict=Verdict.BROKEN if found.broken else Verdict.HOLDS, says=says,
        numbers={"lower": found.lower, "accounted": found.accounted, "delta": found.delta, "canaries": found.canaries},
        picture=histogram(found.scores[found.inside], found.scores[~found.inside]),
    )  # fmt: skip


# ── lying to the clients of a secure sum


def lying(job: Job, people: Clients) -> Finding:
    """Every lie of `malicious_server`, told to clients of the job's own sum."""
    try:
        from hansa.testing.attacks import malicious_server
    except MissingExtra:
        raise ConfigError("it is played against SecureSum, which needs hansa[cryptography].") from None
    attempts = malicious_server.against_job(job, len(people))
    won = [attempt.attack for attempt in attempts if attempt.won]
    how = ", ".join(won) if won else ", ".join(f"{attempt.attack} ({attempt.refused} refused)" for attempt in attempts)
    says = f"of {len(attempts)} lies {len(won)} give the server a single client's contribution: {how}"
    return Finding(
        attack="lying server", verdict=Verdict.BROKEN if won else Verdict.HOLDS, says=says,
        numbers={attempt.attack: vars(attempt) for attempt in attempts},
    )  # fmt: skip
