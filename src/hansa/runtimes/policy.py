"""What a worker's owner allows to run, and the record of every decision.

    --allow signer:alice      any job that alice signed
    --allow hash:9f86d0…      this one job, which the owner has read (64 hexadecimal digits, `hansa job show`)
    --allow ask               ask a person, once for each (job, signer); the answer is remembered

The rules are tried in this order, and what no rule allows does not run. A policy reads names that `Bundle.verify` has
already proved; it never replaces that check.

The record is a file of JSON lines, each of which holds the SHA-256 of the line before: a line that was changed, taken
out or put in breaks the chain. Cutting off its end does not, so whoever must prove that too keeps `head` elsewhere.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from hansa.core.errors import ConfigError, PolicyError, StorageFull
from hansa.crypto.private_file import locked
from hansa.runtimes.bundle import Bundle

Ask = Callable[[Bundle, str | None], bool]

_HASH = re.compile(r"[0-9a-f]{64}")
_START = "0" * 64  # what the first line has before it


@dataclass(frozen=True)
class Decision:
    """Whether a job may run here, by which rule, and why."""

    allowed: bool
    rule: str
    reason: str

    def enforce(self) -> None:
        """Raises PolicyError with the reason unless the job is allowed."""
        if not self.allowed:
            raise PolicyError(self.reason)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The owner's rules; with none, nothing runs.

    >>> Policy.parse(["signer:alice", "ask"])
    Policy(signers=frozenset({'alice'}), hashes=frozenset(), asks=True)
    """

    signers: frozenset[str] = frozenset()
    hashes: frozenset[str] = frozenset()
    asks: bool = False

    @classmethod
    def parse(cls, rules: Iterable[str]) -> Self:
        """Reads the values of `--allow`; ConfigError names the one that is wrong."""
        signers, hashes, asks = set[str](), set[str](), False
        for rule in rules:
            kind, _, value = rule.partition(":")
            if kind == "signer" and value:
                signers.add(value)
            elif kind == "hash" and _HASH.fullmatch(value.lower()):
                hashes.add(value.lower())
            elif rule == "ask":
                asks = True
            else:
                raise ConfigError(
                    f"--allow {rule} is no rule: write signer:NAME, hash:HEX (all 64 digits of the job's hash) or ask"
                )
        return cls(signers=frozenset(signers), hashes=frozenset(hashes), asks=asks)

    def decide(
        self,
        bundle: Bundle,
        signer: str | None,
        *,
        log: "DecisionLog",
        ask: Ask | None = None,
        now: datetime | None = None,
    ) -> Decision:
        """Whether `bundle` may run here; the decision is in the log, on disk, before it is returned.

        Args:
          bundle: the job, already verified.
          signer: what `Bundle.verify` returned; None for an unsigned job, which only its hash or a person can allow.
          log: this worker's record.
          ask: asks a person; None where nobody can be asked, which refuses.
          now: default this machine's clock.

        Raises:
          PolicyError: the log cannot be trusted or written. Nothing may run then.
        """
        decision = self._judge(bundle, signer, log, ask)
        log.append(bundle.hash, signer, decision, now or datetime.now(UTC))
        return decision

    def _judge(self, bundle: Bundle, signer: str | None, log: "DecisionLog", ask: Ask | None) -> Decision:
        """The first rule that allows the job, else a refusal with its remedy."""
        job = f"job {bundle.hash[:12]} of {signer or 'no known signer'}"
        if bundle.hash in self.hashes:
            return Decision(True, "hash", f"{job} is allowed by its hash")
        if signer in self.signers:
            return Decision(True, "signer", f"{job} is allowed by its signer")
        remedy = f"its owner may read it with `hansa job show` and allow it: --allow hash:{bundle.hash}"
        if not self.asks:
            return Decision(False, "none", f"{job} is not allowed by this worker's owner: {remedy}")
        answer = log.answer(bundle.hash, signer)
        if answer is None:
            if ask is None:
                return Decision(False, "none", f"{job} needs an answer and there is nobody to ask: {remedy}")
            answer = ask(bundle, signer)
        if answer:
            return Decision(True, "ask", f"{job} was allowed by a person here")
        return Decision(False, "ask", f"{job} was refused by a person here: {remedy}")


@dataclass(frozen=True)
class DecisionLog:
    """The record of one worker's decisions, in one file that is only ever appended to."""

    path: Path

    def append(self, job: str, signer: str | None, decision: Decision, now: datetime) -> None:
        """Adds a line to a whole chain and waits until it is on disk."""
        line: dict[str, Any] = {
            "time": now.astimezone(UTC).isoformat(timespec="seconds"),
            "job": job,
            "signer": signer,
            "allowed": decision.allowed,
            "rule": decision.rule,
            "reason": decision.reason,
        }
        try:
            with locked(self.path), open(self.path, "ab") as file:
                _, head = self.verify()
                file.write(json.dumps({"previous": head, **line}).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except (OSError, ConfigError, StorageFull) as error:
            raise PolicyError(
                f"decision log cannot be written ({error}), so nothing may run: "
                "give it a writable place with space left"
            ) from None

    def verify(self) -> tuple[list[dict[str, Any]], str]:
        """Checks the whole chain.

        Returns:
          All decisions, oldest first, and the head: the SHA-256 of the last line, which proves the log up to here.

        Raises:
          PolicyError: a line was changed, taken out, put in or torn; the message has its number.
        """
        lines = self._lines()
        decisions: list[dict[str, Any]] = []
        previous = _START
        for number, line in enumerate(lines, start=1):
            try:
                fields = dict(json.loads(line))
                whole = fields["previous"] == previous
            except (ValueError, TypeError, KeyError, RecursionError):
                whole = False
            if not whole:
                raise PolicyError(
                    f"decision log {self.path} is broken at line {number}: it was changed or torn; keep it for an "
                    "inquiry, move it away and start a new one"
                )
            decisions.append(fields)
            previous = _digest(line)
        return decisions, previous

    def answer(self, job: str, signer: str | None) -> bool | None:
        """What a person last said of this job of this signer; None if nobody was asked."""
        for decision in reversed(self.verify()[0]):
            if (decision.get("job"), decision.get("signer"), decision.get("rule")) == (job, signer, "ask"):
                return decision.get("allowed") is True
        return None

    def _lines(self) -> list[bytes]:
        """The lines, each of which must have its end."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise PolicyError(
                f"decision log {self.path} cannot be read ({error.strerror}), so nothing may run: mend its permissions"
            ) from None
        if content and not content.endswith(b"\n"):
            raise PolicyError(
                f"decision log {self.path} ends in a torn line: move it away for an inquiry and start a new one"
            )
        return content.splitlines()


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
