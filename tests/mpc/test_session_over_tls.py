"""The parties as processes: the same program over mutual TLS, and programs that differ."""

import copy
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hansa.app.enrol import Authority
from hansa.mpc.session import Session, connect, local
from hansa.runtimes.mesh import Parties

NAMES = ("bank", "clinic", "shop")


with torch.random.fork_rng():  # once, not in the program: the generator is one for all parties that are threads
    torch.manual_seed(1)
    X, Y = torch.randn(32, 4), torch.randn(32, 1)
    START = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1))


def program(session: Session) -> Any:
    drawn = torch.rand(()).item()  # alike at all processes, though nobody seeded it
    secret = session.share_module(copy.deepcopy(START))
    a, b = session.share(X, session.names[1]), session.share(Y, session.names[2])
    optimiser = torch.optim.SGD(secret.parameters(), lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        F.mse_loss(secret(a), b).backward()
        optimiser.step()
    opened = session.reveal(secret.state_dict(), to=session.names[0])
    return {name: None if value is None else value.tolist() for name, value in opened.items()}, drawn


def party(folder: str, parties: Parties, name: str, script: str, pipe: Any) -> None:
    try:
        with connect(parties, identity=Path(folder) / f"{name}.pem", program=script, wait_s=60) as session:
            pipe.send(program(session))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")


def together(folder: Path, scripts: dict[str, str]) -> list[Any]:
    authority = Authority.create(folder / "authority", "test")
    for name in NAMES:
        authority.issue(name, "party", hosts=["127.0.0.1"]).rename(folder / f"{name}.pem")
    parties = Parties.here(NAMES)
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in NAMES]
    children = [
        context.Process(target=party, args=(str(folder), parties, name, scripts[name], pipe[1]), daemon=True)
        for name, pipe in zip(NAMES, pipes, strict=True)
    ]
    for child in children:
        child.start()
    try:
        return [pipe.recv() if pipe.poll(150) else "nothing" for pipe, _ in pipes]
    finally:
        for child in children:
            child.kill()


def test_three_processes_train_what_three_threads_train(tmp_path: Path) -> None:
    results = together(tmp_path, dict.fromkeys(NAMES, __file__))
    wanted, _ = local(program)[0]
    assert isinstance(results[0], tuple), results
    assert len({drawn for _, drawn in results}) == 1, "parties that draw differently compute on different rows"
    for name, value in wanted.items():
        difference = (torch.tensor(results[0][0][name]) - torch.tensor(value)).abs().max()
        assert float(difference) < 1e-3, name
        assert results[1][0][name] is None and results[2][0][name] is None


@pytest.mark.slow
def test_a_party_with_another_program_is_refused_by_all(tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    other.write_text("print('not the same')")
    results = together(tmp_path, {"bank": __file__, "clinic": __file__, "shop": str(other)})
    assert all(isinstance(each, str) for each in results), results
    assert any("another program" in each for each in results), results
