"""A job before it runs: its settings from the command line, its check, its readable dump, and its archive."""

import json
import math
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hansa.app.terminal import emit, hint, say, settings as terminal_settings, size
from hansa.core.errors import BundleError, ConfigError
from hansa.core.job import Job, canonical
from hansa.privacy.disclosure import who_sees_what
from hansa.runtimes.bundle import Bundle, pack
from hansa.runtimes.forms import worker_form
from hansa.runtimes.jobfile import load_job, settings_file


def read_settings(pairs: Sequence[str], config: Path | None = None) -> dict[str, str]:
    """Settings of a job from `--config` and `--set`; later ones win.

    >>> read_settings(["rounds=50", "algorithm.work.lr=0.1"])
    {'rounds': '50', 'algorithm.work.lr': '0.1'}

    Raises:
      ConfigError: a pair without `=`, or a file that is no TOML.
    """
    found: dict[str, str] = {}
    if config is not None:
        try:
            found.update(_flat(tomllib.loads(config.read_text(encoding="utf-8"))))
        except OSError as error:
            raise ConfigError(f"--config {config} cannot be read ({error.strerror}): check the path.") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"--config {config} is no TOML: {error}.") from None
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {pair}: write KEY=VALUE, as in --set rounds=50.")
        found[key.strip()] = value.strip()
    return found


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value if isinstance(value, str) else json.dumps(value)


def packed(
    job: Path, pairs: Mapping[str, str], identity: Any, include: Sequence[str] = (), out: Path | None = None
) -> Bundle:
    """Packs a job file, with its settings as a file of their own inside, so that every worker applies the same."""
    if not pairs:
        return pack(job, out, identity, include=include)
    plain = pack(job, None, None, include=include)
    name = settings_file(Path(plain.entry)).name
    with tempfile.TemporaryDirectory(prefix="hansa-") as folder:
        entry = plain.extract(Path(folder) / "job")
        given = dict(json.loads(plain.files.get(name, b"{}")))
        text = json.dumps({**given, **pairs}, indent=1, sort_keys=True) + "\n"
        (entry.parent / name).write_text(text, encoding="utf-8")
        return pack(entry, out, identity, include=sorted({*plain.files, name}))


def check(job: Path, pairs: Sequence[str], config: Path | None, population: int | None) -> None:
    """`hansa job check`."""
    loaded = load_job(job, read_settings(pairs, config))
    loaded.check(population)
    fingerprint = loaded.fingerprint()
    emit("checked", job=loaded.name, fingerprint=fingerprint, faults=[])
    say(f"{job} has no faults (fingerprint {fingerprint[:12]}).")


def build(
    job: Path,
    out: Path,
    identity: Path | None,
    pairs: Sequence[str],
    config: Path | None,
    include: Sequence[str],
    checked: bool,
) -> None:
    """`hansa build`."""
    given = read_settings(pairs, config)
    if checked:
        portable(load_job(job, given))
    bundle = packed(job, given, _identity(identity), include, out)
    contents(bundle)
    say(
        f"written to {out}"
        + ("" if bundle.signature else ", unsigned: no worker takes it but with --allow hash:… or --insecure")
    )


def archive(path: Path) -> Bundle:
    """A job's archive from its file.

    Raises:
      ConfigError: the file is something else altogether.
      BundleError: see `Bundle.open`.
    """
    if path.is_file() and not zipfile.is_zipfile(path):
        raise ConfigError(f"'{path}' is neither a job file (.py) nor an archive that `hansa build` wrote: give one.")
    return Bundle.open(path)


def portable(job: Job) -> None:
    """JobError unless a job has no faults and can be rebuilt by name in another process."""
    job.check()
    worker_form(job)


def hidden(job: Job, population: int | None = None) -> str:
    """What the server sees, where the reducer keeps single contributions from it; else empty."""
    if job.pipeline.reducer is None or job.pipeline.reducer.sees == "each":
        return ""
    return who_sees_what(job, population or max(1, math.ceil(job.who.expected(1 << 20))))["the server"]


def _identity(path: Path | None) -> Any:
    from hansa.crypto.identity import Identity

    return None if path is None else Identity.load(path)


def contents(bundle: Bundle) -> None:
    """Says a bundle's hash and what is inside."""
    signer = bundle.signature.claimed_signer.name if bundle.signature else None
    files = {name: len(bundle.files[name]) for name in sorted(bundle.files)}
    needs = sorted(set(bundle.requires.values()))
    emit("bundle", hash=bundle.hash, entry=bundle.entry, signer=signer, files=files, needs=needs)
    say(f"hash    {bundle.hash}")
    say(f"signer  {signer or 'nobody'}")
    say(f"needs   {', '.join(needs) or 'nothing but Hansa'}")
    for name, length in files.items():
        say(f"file    {name} ({size(length)}){'  ← the job' if name == bundle.entry else ''}")


def show(job: Path, pairs: Sequence[str], config: Path | None, population: int | None, load: bool) -> None:
    """`hansa job show`."""
    given = read_settings(pairs, config)
    if job.suffix == ".py":
        _dump(load_job(job, given), population)
        try:
            contents(packed(job, given, None))
        except BundleError as error:
            hint(f"cannot be packed: {error}")
        return
    bundle = archive(job)
    if terminal_settings.json:
        contents(bundle)
    else:
        print(bundle.describe())
    if load:
        bundle.check_installed()
        with tempfile.TemporaryDirectory(prefix="hansa-") as folder:
            _dump(load_job(bundle.extract(Path(folder) / "job"), given), population)
    elif not terminal_settings.json:
        hint("its code was not run; --load dumps the job it defines, once you have read it")


def _dump(job: Job, population: int | None) -> None:
    """The job as it binds, for people or as one JSON object."""
    count = population or max(1, round(job.who.expected(1 << 20)))
    job.check(population)
    facts = _facts(job, count)
    emit("job", **facts)
    if terminal_settings.json:
        return
    say(f"job '{job.name}', fingerprint {facts['fingerprint']}")
    say("\ncanonical form (what the fingerprint is of)")
    say("\n".join(f"  {line}" for line in readable(canonical(job)).split("\n")))
    say(f"\nbound for {count} clients, {facts['expected']:g} of them a round, {job.rounds} rounds")
    for stage in facts["stages"]:
        say(f"  {stage['stage']}")
        for event in stage["releases"]:
            say(f"      releases {event['mechanism']} noise of multiplier {event['noise_multiplier']:g}")
        for name, part in stage["parts"].items():
            say(f"      {name}: {part}")
    say(f"  {facts['reducer']}")
    say(f"\none message has about {size(facts['message_bits'] / 8)}")
    say("\nwho sees what")
    for who, what in facts["sees"].items():
        say(f"  {who}: {what}")
    say("")


def _facts(job: Job, population: int) -> dict[str, Any]:
    bound = job.bind(population)
    stages = [
        {
            "stage": repr(stage),
            "parts": {
                name: f"{part.count} numbers, {part.bits:g} bits each, L2 ≤ {part.l2:g}"
                for name, part in step.out.parts.items()
            },
            "releases": [vars(event) for event in step.events()],
        }
        for stage, step in zip(job.pipeline.stages, bound.steps, strict=True)
    ]
    roles: dict[str, list[str]] = {}
    for name in job.model.shapes():
        roles.setdefault(job.model.role(name).name.lower(), []).append(name)
    return {
        "name": job.name, "fingerprint": job.fingerprint(), "canonical": canonical(job), "rounds": job.rounds,
        "population": population, "expected": job.who.expected(population), "stages": stages,
        "reducer": repr(job.pipeline.reducer), "message_bits": bound.bits(), "roles": roles,
        "sees": who_sees_what(job, population),
    }  # fmt: skip


def readable(form: Any, depth: int = 0) -> str:
    """A canonical form as indented lines that look like Python.

    >>> print(readable({"$type": "hansa.stages.sum:Sum", "fields": {}}))
    hansa.stages.sum:Sum()
    """
    match form:
        case {"$float": text}:
            return repr(float.fromhex(text))
        case {"$name": name}:
            return str(name)
        case {"$type": kind, "fields": fields}:
            inner = [f"{name}={readable(value, depth + 1)}" for name, value in fields.items()]
            return f"{kind}({_lines(inner, depth)})" if inner else f"{kind}()"
        case {"$sequence": sequence}:
            items = [readable(item, depth + 1) for item in sequence]
            spread = any("\n" in item for item in items)
            return f"[{_lines(items, depth) if spread else ', '.join(items)}]"
        case {"$mapping": pairs}:
            inner = [f"{readable(key, depth + 1)}: {readable(value, depth + 1)}" for key, value in pairs]
            return f"{{{', '.join(inner)}}}"
        case {"$tensors": tensors} if not tensors:
            return "no tensors"
    return json.dumps(form, ensure_ascii=False)


def _lines(items: Sequence[str], depth: int) -> str:
    """Each in a line of its own."""
    pad = "\n" + "  " * (depth + 1)
    return pad + pad.join(items)
