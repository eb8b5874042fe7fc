"""The reproductions of examples/papers/ in their quick setting: what they find, what they print and what they draw."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import hansa
from hansa.runtimes.jobfile import load_module

for library in ("torch", "sklearn", "matplotlib"):
    pytest.importorskip(library)

PAPERS = Path(__file__).resolve().parents[2] / "examples" / "papers"


def paper(name: str) -> ModuleType:
    return load_module(PAPERS / f"{name}.py")


def quick(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Any, str]:
    """What the command gives with --quick, and what it prints; the picture is a PNG that shows something."""
    picture = tmp_path / "picture.png"
    found = paper(name).main(["--quick", "--picture", str(picture)])
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert len(picture.read_bytes()) > 5_000
    return found, capsys.readouterr().out


def parameters(net: Any) -> int:
    return sum(parameter.numel() for parameter in net().parameters())


def test_the_nets_have_as_many_parameters_as_the_papers() -> None:
    mnist = paper("fedavg_mnist")
    assert parameters(mnist.two_hidden_layers) == 199_210
    assert parameters(mnist.convolutional) == 1_663_370
    assert parameters(paper("niid_bench").simple_cnn) == 44_426


def test_fedavg_learns_shuffled_digits_faster_than_sorted_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, printed = quick("fedavg_mnist", tmp_path, capsys)
    iid, shards, cnn = (lines[name][1][-1] for name in ("2NN, IID", "2NN, two shards", "CNN, IID"))
    assert iid > 0.5 > shards > 0.1
    assert cnn > 0.1  # chance: a round or two of a larger net
    assert "87 to 97%" in printed
    assert "664 to 97%" in printed
    assert "34 to 99%" in printed


def test_all_algorithms_of_niid_bench_learn_each_in_its_own_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, printed = quick("niid_bench", tmp_path, capsys)
    for split, lines in found.items():
        assert len({tuple(accuracy) for _, accuracy in lines.values()}) == 4, split
        for name, (_, accuracy) in lines.items():
            assert max(accuracy) > 0.15, (split, name)
    assert found["Dirichlet(0.5)"]["FedAvg"][1][-1] > 0.35
    assert "98.89" in printed


def test_partial_work_of_stragglers_helps_where_most_are_late(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, printed = quick("fedprox_stragglers", tmp_path, capsys)
    dropped, partial, pulled = ("FedAvg, drops stragglers", "FedProx, μ = 0", "FedProx, μ = 1")
    assert found[0.0][dropped] == found[0.0][partial] != found[0.0][pulled]
    assert found[0.9][partial].loss[1][-1] < 0.7 * found[0.9][dropped].loss[1][-1]
    assert "+22" in printed


def test_a_round_of_stragglers_alone_changes_nothing_if_they_are_dropped() -> None:
    module = paper("fedprox_stragglers")
    clients, _ = module.held_out(hansa.data.synthetic(1, 1, clients=3, seed=0))
    work = hansa.LocalWork(lr=0.01, epochs=3, batch_size=10)
    for share, moves in ((0.0, True), (1.0, False)):
        job = hansa.Job(
            model=module.MODEL,
            algorithm=module.Straggling(work, share=share, drop=True),
            pipeline=hansa.Pipeline([hansa.WeightedMean()], hansa.Sum()),
            cohort=3,
        )
        after, before = hansa.train(job, clients).params, module.MODEL.init(0)
        assert moves is any(not np.array_equal(after[name], before[name]) for name in before)


def test_fedbuff_is_at_its_target_in_less_simulated_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, printed = quick("fedbuff", tmp_path, capsys)
    module = paper("fedbuff")
    needed = {name: module.reached(line, module.QUICK.target) for name, line in found["seconds"].items()}
    assert needed["FedBuff"] < 0.6 * needed["synchronous"]
    assert found["updates"]["synchronous"][0][-1] == found["updates"]["FedBuff"][0][-1]
    assert "3.3" in printed


def test_federated_by_role_comes_near_central_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, printed = quick("shakespeare", tmp_path, capsys)
    central, federated = max(found["central"][1]), max(found["federated by role"][1])
    assert central > 0.7  # made-up text whose next character can be told in four places of five
    assert federated > central - 0.05
    assert "published" in printed
