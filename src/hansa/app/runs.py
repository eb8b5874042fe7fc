"""What a server is asked about runs: submit, watch, list, members, status, logs, stop, resume, model."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hansa.app.access import Access
from hansa.app.folder import check_file
from hansa.app.jobs import archive, contents, hidden, packed, portable, read_settings
from hansa.app.show import Rounds, metrics_of, summary
from hansa.app.terminal import emit, hint, is_live, moment, say, settings, size, table
from hansa.core import errors
from hansa.core.errors import ConfigError, HansaError, JobError, MissingExtra, NotFound, TrainingFailed

if TYPE_CHECKING:
    from hansa.runtimes.grpc.client import Client


def submit(
    job: Path, access: Access, pairs: Sequence[str], config: Path | None, wait: bool, workers: int,
    include: Sequence[str], checked: bool,
) -> None:  # fmt: skip
    """Packs, signs, hands in, and with `wait` follows to the end."""
    from hansa.runtimes.jobfile import load_job

    given = read_settings(pairs, config)
    if workers < 0:
        raise ConfigError(f"--workers {workers}: it may not be negative.")
    member = access.member("submitter")
    sees = ""
    if job.suffix == ".py":
        if checked:
            loaded = load_job(job, given)
            portable(loaded)
            sees = hidden(loaded)
        bundle = packed(job, given, member, include)
    elif given or include:
        raise ConfigError(
            f"{job} is an archive, whose hash fixes its content: give --set and --include to `hansa build`."
        )
    else:
        bundle = archive(job)
    contents(bundle)
    if sees:
        say(f"sees    the server: {sees}")
    with access.client(member) as client:
        run = client.submit(bundle, workers=workers)
        emit("submitted", run=run, hash=bundle.hash, server=access.address)
        say(f"run     {run}")
        if wait:
            _follow(client, run, must_finish=True)
        else:
            say(f"follow it: hansa watch {run}")


def watch(run: str, access: Access) -> None:
    """Follows a run to its end."""
    with access.client() as client:
        _follow(client, _run(client, run), must_finish=False)


def list_runs(access: Access) -> None:
    """All runs of a server."""
    with access.client() as client:
        rows = [_row(status) for status in client.runs()]
    table(
        "run", rows, ["run", "name", "state", "rounds done", "submitter", "created", "last"],
        "no runs yet: hand one in with `hansa submit job.py`",
    )  # fmt: skip


def members(access: Access) -> None:
    """Everybody who ever connected."""
    with access.client() as client:
        rows = client.members()
    if not settings.json:
        rows = [
            {**row, "connected": "yes" if row.get("connected") else "no", "last seen": moment(row.get("last_seen"))}
            for row in rows
        ]
    table("member", rows, ["name", "role", "connected", "last seen"], "nobody has connected yet")


def status(run: str, access: Access) -> None:
    """One run."""
    with access.client() as client:
        _show_status(client.status(_run(client, run)))


def logs(run: str, follow: bool, access: Access) -> None:
    """A run's log."""
    with access.client() as client:
        for line in client.logs(_run(client, run), follow=follow):
            emit("log", **line)
            say(f"{moment(line.get('time'))}  {line.get('source', '')}: {line.get('text', '')}")


def stop(run: str, access: Access) -> None:
    """Ends a run after its last committed round."""
    with access.client() as client:
        found = client.stop(_run(client, run))
    emit("status", **found)
    goes_on = "" if found["state"] == "done" else f": `hansa resume {found['run']}` goes on with it"
    say(f"run {found['run']} is {found['state']} after {found['round']} rounds{goes_on}")


def resume(run: str, access: Access) -> None:
    """Goes on with a run that was stopped or failed."""
    with access.client() as client:
        found = client.resume(_run(client, run))
    emit("status", **found)
    follow = "" if found["state"] == "done" else f": `hansa watch {found['run']}` follows it"
    say(f"run {found['run']} is {found['state']}, with {found['round']} rounds committed{follow}")


def model(run: str, out: Path, best: bool, job: Path | None, access: Access) -> None:
    """Fetches a run's model into a safetensors file."""
    from hansa.core.checkpoint import dump
    from hansa.runtimes.jobfile import load_job

    check_file(out, "--out")
    loaded = load_job(job) if job is not None else None
    with access.client() as client:
        facts = client.status(_run(client, run))
        checkpoint = client.model(facts["run"], best=best)
    params = checkpoint.state.part("model")
    if loaded is not None:
        from hansa.app.predict import completed

        params = completed(loaded, params, f"of run {run}")
    content = dump(params, {"job": str(facts["name"]), "run": str(facts["run"]), "round": str(checkpoint.round)})
    beside = out.with_name(out.name + ".partial")
    try:
        beside.write_bytes(content)
        beside.replace(out)
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be written ({error.strerror}): choose another place.") from None
    told = {"run": facts["run"], "round": checkpoint.round, "path": str(out)}
    emit("model", **told, tensors=len(params), bytes=len(content), best=best)
    say(f"{'best ' * best}model of round {checkpoint.round}: {len(params)} tensors, {size(len(content))}, in {out}")


# -- showing


def _follow(client: "Client", run: str, must_finish: bool) -> None:
    """Shows a run until it is over; a failed one ends with its own error."""
    facts, begun = client.status(run), time.monotonic()
    with Rounds(str(facts.get("name") or run), facts.get("rounds") or None) as rounds:
        try:
            facts = _watched(client, run, rounds) or facts
        except KeyboardInterrupt:
            again = f"`hansa watch {run}` follows it again, `hansa stop {run}` ends it"
            raise KeyboardInterrupt(f"not watching any more; run {run} goes on: {again}") from None
    state, reason = facts["state"], str(facts.get("reason") or "")
    if state == "failed":
        raise _failure(run, reason)
    last = f": {summary(rounds.shown)}" if rounds.shown else ""
    took = f" in {time.monotonic() - begun:.0f} s" if must_finish else ""
    say(f"run {run} is {state}{f' ({reason})' if reason else ''} after {facts['round']} rounds{took}{last}")
    if state == "done":
        say(f"fetch its model: hansa model {run} --out model.safetensors")
    elif must_finish:
        raise TrainingFailed(
            f"run {run} is {state} after {facts['round']} rounds: `hansa resume {run}` goes on with it."
        )


def _watched(client: "Client", run: str, rounds: Rounds) -> dict[str, Any] | None:
    """Shows a run's rounds, and for whom it waits, as the server tells; its last status."""
    facts: dict[str, Any] | None = None
    said = ""
    for event in client.watch(run):
        if "record" in event:
            rounds.add(event["record"], event.get("privacy"))
        if "status" in event:
            facts = event["status"]
            emit("status", **{key: value for key, value in facts.items() if key != "last"})
            rounds.describe(str(facts.get("name") or run), facts.get("rounds") or None)
            rounds.waiting(waiting := str(facts.get("waiting") or ""))
            before, said = said, waiting.partition("(")[0]
            if said not in ("", before) and not is_live():
                hint(waiting)
    return facts


def _failure(run: str, reason: str) -> HansaError:
    """What a run failed with, as the class that the server names."""
    name, _, words = reason.partition(": ")
    kind = getattr(errors, name, None)
    if not (isinstance(kind, type) and issubclass(kind, HansaError)):
        kind, words = TrainingFailed, reason
    if kind is JobError:
        return JobError([line.removeprefix("  - ") for line in words.splitlines()[1:]] or [words])
    if kind is MissingExtra:
        kind = TrainingFailed
    return kind(f"run {run} failed: {words or 'its log says why'} (`hansa logs {run}`)")


def _row(status: Mapping[str, Any]) -> dict[str, Any]:
    """One line of the list; all of it for machines."""
    if settings.json:
        return dict(status)
    last = status.get("last")
    return {
        **status, "rounds done": f"{status.get('round', 0)}/{status.get('rounds') or '?'}",
        "created": moment(status.get("created")),
        "last": summary(last) if last else status.get("reason") or status.get("waiting") or "",
    }  # fmt: skip


def _show_status(facts: Mapping[str, Any]) -> None:
    emit("status", **facts)
    if settings.json:
        return
    last = facts.get("last") or {}
    lines = {
        "run": facts["run"], "job": facts.get("name"), "state": facts["state"], "reason": facts.get("reason"),
        "waiting": facts.get("waiting"), "rounds": f"{facts.get('round', 0)} of {facts.get('rounds') or '?'}",
        "submitter": facts.get("submitter"), "created": moment(facts.get("created")), "job's hash": facts.get("bundle"),
        "fingerprint": facts.get("fingerprint"), "server sees": facts.get("sees"),
        "last round": summary(last) if metrics_of(last) else None,
    }  # fmt: skip
    for name, value in lines.items():
        if value not in (None, ""):
            say(f"{name:<12} {value}")


def _run(client: "Client", run: str) -> str:
    """The id given, or that of the latest run."""
    if run:
        return run
    found = client.runs()
    if not found:
        raise NotFound("the server has no runs yet: hand one in with `hansa submit job.py`.")
    return str(found[-1]["run"])
