import numpy as np
import pytest

from hansa.core.errors import DataError, NotFound
from hansa.data import blobs, synthetic


def test_the_truth_of_a_synthetic_client_labels_all_its_points():
    clients = synthetic(alpha=0.5, beta=0.5, clients=12)
    assert list(clients) == [f"{number:02d}" for number in range(12)]
    for client in clients:
        data = clients[client]
        weights, bias = clients.truth(client)
        assert data["x"].shape == (len(data), 60)
        assert len(data) >= 50
        assert (data["y"] == (data["x"] @ weights.T + bias).argmax(1)).all()


def test_a_synthetic_client_is_the_same_whichever_were_opened_before():
    first, second = synthetic(clients=5, seed=7), synthetic(clients=5, seed=7)
    first.open("0")
    assert np.array_equal(first["3"]["x"], second["3"]["x"])
    assert not np.array_equal(synthetic(clients=5, seed=8)["3"]["x"][:10], second["3"]["x"][:10])


def test_alpha_moves_models_apart_and_beta_moves_points_apart():
    def spread(of):
        return float(np.std([of(client) for client in range(200)]))

    for scale in (0.0, 3.0):
        models = synthetic(alpha=scale, beta=0, clients=200)
        points = synthetic(alpha=0, beta=scale, clients=200)
        # Means over 600 weights and over 60 features: the wanted deviation plus that of the mean itself.
        assert spread(lambda k, c=models: c.truth(c.ids[k])[0].mean()) == pytest.approx(
            np.hypot(scale, 1 / np.sqrt(600)), rel=0.2
        )
        assert spread(lambda k, c=points: c[c.ids[k]]["x"].mean()) == pytest.approx(
            np.hypot(scale, 1 / np.sqrt(60)), rel=0.2
        )


def test_the_features_have_the_covariance_of_the_paper():
    x = np.concatenate([synthetic(iid=True, clients=300)[f"{k:03d}"]["x"] for k in range(300)])
    assert x.mean(0) == pytest.approx(np.zeros(60), abs=0.05)
    assert x.var(0) == pytest.approx(np.arange(1, 61) ** -1.2, rel=0.05)


def test_iid_clients_share_one_truth():
    clients = synthetic(iid=True, clients=3)
    assert np.array_equal(clients.truth("0")[0], clients.truth("2")[0])


@pytest.mark.parametrize("stranger", ["5", "00", "x"])
def test_a_synthetic_client_that_does_not_exist_is_not_found(stranger):
    with pytest.raises(NotFound, match=f"no client '{stranger}' among 5"):
        synthetic(clients=5).open(stranger)


def test_blobs_are_balanced_and_can_be_told_apart():
    data = blobs(rows=900, classes=3, features=4, separation=8, seed=1)
    assert np.bincount(data["y"]).tolist() == [300] * 3
    centres = np.stack([data["x"][data["y"] == label].mean(0) for label in range(3)])
    nearest = ((data["x"][:, None] - centres) ** 2).sum(-1).argmin(1)
    assert (nearest == data["y"]).mean() > 0.97


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (lambda: synthetic(alpha=-1), "alpha=-1 must be"),
        (lambda: synthetic(beta=float("nan")), "beta=nan must be"),
        (lambda: synthetic(clients=0), "clients=0 must be"),
        (lambda: blobs(rows=0), "rows=0 must be"),
    ],
)
def test_what_cannot_be_made_up_is_refused(request_, message):
    with pytest.raises(DataError, match=message):
        request_()
