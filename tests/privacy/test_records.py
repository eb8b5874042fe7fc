"""What DP-SGD costs a record."""

from dataclasses import replace

import pytest

from hansa.core.errors import ConfigError
from hansa.core.model import LocalWork, RecordDP
from hansa.privacy.records import record_epsilon, record_events


def test_the_published_run_on_mnist_costs_what_was_published() -> None:
    work = LocalWork(lr=0.15, epochs=15, batch_size=256, dp=RecordDP(noise_multiplier=1.3, clip=1.5))
    cost = record_epsilon(work, examples=60_000, visits=1, delta=1e-5)
    assert cost.epsilon <= 1.19  # TensorFlow Privacy and Opacus: 1.16 to 1.19
    assert cost.relation == "add or remove one record"
    # The vector of dp-accounting: q = 250/60000, σ = 1.3, 3600 steps.
    vector = record_epsilon(work.with_(batch_size=250), examples=60_000, visits=1, delta=1e-5)
    assert (round(vector.rdp, 5), round(vector.pld, 5)) == (0.94220, 0.85303)


def test_microbatches_cost_what_the_same_multiplier_costs_without() -> None:
    work = LocalWork(lr=0.1, epochs=2, batch_size=50, dp=RecordDP(noise_multiplier=1.1, clip=2.0))
    slots = work.with_(dp=RecordDP(noise_multiplier=1.1, clip=2.0, microbatches=10))
    (event,), (other,) = record_events(work, 1000), record_events(slots, 1000)
    assert replace(other, detail=event.detail) == event and other.detail == "DP-SGD steps, clip 2, 10 microbatches"
    spent = [record_epsilon(each, examples=1000, visits=3, delta=1e-5).epsilon for each in (work, slots)]
    assert spent[0] == spent[1] > 0


def test_visits_add_up_and_a_whole_batch_is_not_amplified() -> None:
    work = LocalWork(lr=0.1, steps=3, batch_size=10, dp=RecordDP(noise_multiplier=2.0, clip=1.0))
    (event,) = record_events(work, 10)
    assert event.sampling == "none" and record_events(work, 10)[event] == 3
    once, often = (record_epsilon(work, examples=1000, visits=v, delta=1e-6).epsilon for v in (1, 50))
    assert 0 < once < often
    assert record_epsilon(work, examples=1000, visits=0, delta=1e-6).epsilon == 0
    assert any("1 / 1000" in note for note in record_epsilon(work, examples=1000, visits=1, delta=0.01).notes)
    with pytest.raises(ConfigError, match="has no dp"):
        record_epsilon(LocalWork(lr=0.1, steps=3, batch_size=10), examples=10, visits=1, delta=1e-5)
    with pytest.raises(ConfigError, match="examples=0"):
        record_epsilon(work, examples=0, visits=1, delta=1e-5)
