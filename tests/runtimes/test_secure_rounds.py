"""Conversations over the wire: signed by enrolled members, carried through deaths on either side, never held twice."""

from pathlib import Path
from typing import Any

import pytest

from tests.runtimes.federation import Federation, data_of, write_job
from tests.runtimes.test_deploy import local_state, same_bits

LEGS = (Path(__file__).parent / "legs.py").read_text()


def write_talk(folder: Path, reducer: str = "Signed()", **options: Any) -> Path:
    """A job file whose reducer is the one of five legs, copied beside it."""
    job = write_job(folder, more="from legs import Signed\nfrom hansa.core.sampling import Fixed", **options)
    (folder / "legs.py").write_text(LEGS)
    job.write_text(job.read_text().replace("Sum())", f"{reducer})"))
    return job


def test_a_signed_conversation_with_a_helper_has_the_bits_of_the_local_one(tmp_path: Path) -> None:
    job = write_talk(tmp_path / "job", "Signed(helpers=('w2',))", cohort=2, rounds=4)
    with Federation(tmp_path, workers=3) as federation:
        federation.start_server()
        for name in ("w0", "w1"):
            federation.start_worker(name, data_of(job).format(name=name))
        run = federation.submit(job, workers=2)
        assert federation.server is not None
        federation.server.wait_for("waiting for workers: helper w2 has not connected yet")
        federation.start_worker("w2", None)
        status = federation.wait(run)
        assert status["state"] == "done", federation.output
        with federation.client() as client:
            assert same_bits(client.model(run), local_state(job, ["w0", "w1"]))
            assert {member["name"]: member["role"] for member in client.members()}["w2"] == "helper"
            assert len(client.model(run).ledger) == 4
        assert not (tmp_path / "w2" / "runs" / run / "memory").exists()
        federation.workers["w2"].wait_for("is loaded, with no data, to help")
