"""What the owner of a worker is promised: nothing runs that no rule allows, and every decision is on record."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from hansa.core.errors import ConfigError, PolicyError
from hansa.runtimes.bundle import Bundle, pack
from hansa.runtimes.policy import DecisionLog, Policy

NOW = datetime(2026, 11, 21, tzinfo=UTC)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("job") / "job.py"
    path.write_text("x = 1\n")
    return pack(path, None, None)


@pytest.fixture
def log(tmp_path: Path) -> DecisionLog:
    return DecisionLog(tmp_path / "decisions.jsonl")


def nobody(bundle: Bundle, signer: str | None) -> bool:
    raise AssertionError("asked without need")


def test_rules_are_read_from_the_command_line() -> None:
    policy = Policy.parse(["signer:alice", "signer:bob", "hash:" + "AB" * 32, "ask"])
    assert policy == Policy(signers=frozenset({"alice", "bob"}), hashes=frozenset({"ab" * 32}), asks=True)


@pytest.mark.parametrize("rule", ["", "any", "signer:", "signer", "hash:abc", "hash:" + "g" * 64, "ask:me", "Ask"])
def test_a_rule_that_does_not_exist_is_named(rule: str) -> None:
    with pytest.raises(ConfigError, match=f"--allow {rule} is no rule: write signer:NAME, hash:HEX"):
        Policy.parse([rule])


def test_without_rules_nothing_runs(job: Bundle, log: DecisionLog) -> None:
    decision = Policy().decide(job, "alice", log=log, ask=nobody)
    with pytest.raises(PolicyError, match=rf"of alice is not allowed by .* owner: .*--allow hash:{job.hash}"):
        decision.enforce()


def test_a_signer_is_allowed_by_name_and_no_other_is(job: Bundle, log: DecisionLog) -> None:
    policy = Policy.parse(["signer:alice"])
    policy.decide(job, "alice", log=log).enforce()
    for signer in ("bob", "Alice", None):
        assert not policy.decide(job, signer, log=log).allowed


def test_a_hash_allows_one_job_of_anyone(job: Bundle, log: DecisionLog, tmp_path: Path) -> None:
    policy = Policy.parse([f"hash:{job.hash}"])
    assert policy.decide(job, None, log=log).rule == "hash"
    (tmp_path / "job.py").write_text("x = 2\n")
    assert not policy.decide(pack(tmp_path / "job.py", None, None), "alice", log=log).allowed


@pytest.mark.parametrize("answer", [True, False])
def test_a_person_is_asked_once_for_each_job_and_signer(job: Bundle, log: DecisionLog, answer: bool) -> None:
    asked: list[str | None] = []

    def ask(bundle: Bundle, signer: str | None) -> bool:
        asked.append(signer)
        return answer

    policy = Policy.parse(["ask"])
    for signer in ("alice", "alice", "bob"):
        assert policy.decide(job, signer, log=log, ask=ask).allowed is answer
    assert asked == ["alice", "bob"]
    assert Policy.parse(["ask"]).decide(job, "alice", log=DecisionLog(log.path)).allowed is answer  # after a restart


def test_an_answer_is_forgotten_when_asking_is_no_longer_a_rule(job: Bundle, log: DecisionLog) -> None:
    assert Policy.parse(["ask"]).decide(job, "alice", log=log, ask=lambda bundle, signer: True).allowed
    assert not Policy().decide(job, "alice", log=log).allowed


def test_where_nobody_can_be_asked_the_job_is_refused_and_not_remembered(job: Bundle, log: DecisionLog) -> None:
    policy = Policy.parse(["ask"])
    with pytest.raises(PolicyError, match="there is nobody to ask"):
        policy.decide(job, "alice", log=log).enforce()
    assert policy.decide(job, "alice", log=log, ask=lambda bundle, signer: True).allowed


def test_every_decision_is_on_record_with_its_time_and_rule(job: Bundle, log: DecisionLog) -> None:
    policy = Policy.parse(["signer:alice"])
    policy.decide(job, "alice", log=log, now=NOW)
    policy.decide(job, "bob", log=log, now=NOW)
    decisions, head = log.verify()
    assert [(d["signer"], d["allowed"], d["rule"]) for d in decisions] == [
        ("alice", True, "signer"),
        ("bob", False, "none"),
    ]
    assert decisions[0]["time"] == "2026-11-21T00:00:00+00:00"
    assert decisions[0]["job"] == job.hash
    assert len(head) == 64
    assert log.path.stat().st_mode & 0o777 == 0o600


def three_decisions(job: Bundle, log: DecisionLog) -> list[bytes]:
    for signer in ("alice", "bob", "carol"):
        Policy.parse(["signer:alice"]).decide(job, signer, log=log, now=NOW)
    return log.path.read_bytes().splitlines(keepends=True)


def test_a_line_changed_taken_out_put_in_or_moved_breaks_the_chain(job: Bundle, log: DecisionLog) -> None:
    one, two, three = three_decisions(job, log)
    forged = json.dumps({**json.loads(two), "allowed": True}).encode() + b"\n"
    for lines, at in [
        ((one, forged, three), 3),
        ((one, three), 2),
        ((two, three), 1),
        ((one, two, two, three), 3),
        ((one, three, two), 2),
        ((one, b"garbage\n", two), 2),
        ((one, b"7\n"), 2),
    ]:
        log.path.write_bytes(b"".join(lines))
        with pytest.raises(PolicyError, match=rf"is broken at line {at}: it was changed or torn"):
            log.verify()


def test_a_cut_end_is_seen_by_who_kept_the_head(job: Bundle, log: DecisionLog) -> None:
    lines = three_decisions(job, log)
    _, head = log.verify()
    log.path.write_bytes(b"".join(lines[:2]))
    assert log.verify()[1] != head


def test_nothing_runs_on_a_torn_broken_or_unwritable_record(job: Bundle, log: DecisionLog, tmp_path: Path) -> None:
    policy = Policy.parse(["signer:alice", "ask"])
    content = b"".join(three_decisions(job, log))
    log.path.write_bytes(content[:-9])
    with pytest.raises(PolicyError, match="ends in a torn line"):
        policy.decide(job, "alice", log=log)
    log.path.write_bytes(content.replace(b"bob", b"eve"))
    for signer in ("alice", "dora"):
        with pytest.raises(PolicyError, match="broken at line 3"):
            policy.decide(job, signer, log=log, ask=nobody)
    with pytest.raises(PolicyError, match="so nothing may run"):
        policy.decide(job, "alice", log=DecisionLog(tmp_path / "missing" / "log"))


@given(st.binary(max_size=200))
def test_garbage_is_no_record(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    log = DecisionLog(tmp_path_factory.getbasetemp() / "junk.jsonl")
    log.path.write_bytes(junk)
    if junk:
        with pytest.raises(PolicyError):
            log.verify()
    else:
        assert log.verify() == ([], "0" * 64)
