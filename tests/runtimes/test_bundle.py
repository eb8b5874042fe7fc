"""What a job archive promises: the same hash everywhere, only local code, and no surprise on opening."""

import io
import json
import os
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from hansa.app.enrol import Authority
from hansa.core.errors import BundleError, IdentityError
from hansa.crypto.identity import Identity, Revoked
from hansa.runtimes import bundle as module
from hansa.runtimes.bundle import Bundle, pack

JOB = """
import json, numpy
from typing import TYPE_CHECKING
import models.net
from helpers import scale
try:
    import optional_speedup
except ImportError:
    optional_speedup = None
if TYPE_CHECKING:
    import only_for_types
def late():
    from models import heads
    from sklearn.linear_model import SGDClassifier
"""


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def job_folder(folder: Path) -> Path:
    return write(
        folder,
        {
            "job.py": JOB,
            "helpers.py": "scale = 2\n",
            "unused.py": "raise SystemExit\n",
            "models/__init__.py": "",
            "models/net.py": "from . import layers\nfrom .deep import block\n",
            "models/layers.py": "import torch.nn as nn\n",
            "models/deep/__init__.py": "",
            "models/deep/block.py": "from ..heads import Head\n",
            "models/heads.py": "from .net import missing_name_in_net\nHead = 1\n",
            "models/unused.py": "",
            "data/patients.csv": "name,age\nA,1\n",
        },
    )


class Federation:
    def __init__(self, folder: Path) -> None:
        self.authority = Authority.create(folder, "league")
        self.alice = Identity.load(self.authority.issue("alice", "submitter"))
        self.worker = Identity.load(self.authority.issue("hospital-a", "worker"))


@pytest.fixture(scope="module")
def league(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("league"))


@pytest.fixture(scope="module")
def packed(league: Federation, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = write(tmp_path_factory.mktemp("job"), {"job.py": "import helpers\n", "helpers.py": "x = 1\n"})
    return pack(folder / "job.py", None, league.alice).dump()


def zipped(entries: dict[str, bytes], change: Callable[[zipfile.ZipInfo], None] = lambda info: None) -> bytes:
    """An archive as our own writer makes it, but of any entries."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in entries.items():
            info = module._zip_entry(name)
            change(info)
            archive.writestr(info, content)
    return buffer.getvalue()


def unzipped(archive: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


# ---------------------------------------------------------------- packing


def test_a_bundle_holds_the_job_and_the_local_modules_it_imports_and_nothing_else(tmp_path: Path) -> None:
    bundle = pack(job_folder(tmp_path) / "job.py", None, None)
    models = ("__init__", "net", "layers", "heads", "deep/__init__", "deep/block")
    names = {"job.py", "helpers.py", *(f"models/{name}.py" for name in models)}
    assert set(bundle.files) == names
    assert bundle.entry == "job.py"


def test_a_bundle_says_what_must_be_installed_by_its_name_on_the_index(tmp_path: Path) -> None:
    bundle = pack(job_folder(tmp_path) / "job.py", None, None)
    assert bundle.requires == {"numpy": "numpy", "sklearn": "scikit-learn", "torch": "torch"}


def test_the_same_folder_elsewhere_and_later_gives_the_same_bytes(league: Federation, tmp_path: Path) -> None:
    first = pack(job_folder(tmp_path / "a") / "job.py", tmp_path / "a.hansa", league.alice, include=["data"])
    shutil.copytree(tmp_path / "a", tmp_path / "deep" / "b")
    for path in (tmp_path / "deep").rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    second = pack(tmp_path / "deep" / "b" / "job.py", tmp_path / "b.hansa", league.alice, include=["data"])
    assert first.hash == second.hash
    assert (tmp_path / "a.hansa").read_bytes() == (tmp_path / "b.hansa").read_bytes()


def test_the_hash_is_of_the_content_and_not_of_the_signer(league: Federation, tmp_path: Path) -> None:
    job = job_folder(tmp_path) / "job.py"
    before = pack(job, None, None)
    assert before.hash == pack(job, None, league.alice).hash
    (tmp_path / "helpers.py").write_text("scale = 3\n")
    assert before.hash != pack(job, None, None).hash


def test_windows_line_ends_change_no_hash(tmp_path: Path) -> None:
    unix = pack(write(tmp_path / "u", {"job.py": "a = 1\nb = 2\n"}) / "job.py", None, None)
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "job.py").write_bytes(b"a = 1\r\nb = 2\r\n")
    assert pack(tmp_path / "w" / "job.py", None, None).hash == unix.hash


def test_included_files_travel_and_hidden_ones_stay(tmp_path: Path) -> None:
    write(job_folder(tmp_path), {"data/.secret": "x", "data/__pycache__/a.txt": "x"})
    assert pack(tmp_path / "job.py", None, None, include=["data"]).files["data/patients.csv"] == b"name,age\nA,1\n"
    assert not [name for name in pack(tmp_path / "job.py", None, None, include=["data"]).files if "secret" in name]


def test_installed_packages_beside_the_job_are_not_packed(tmp_path: Path) -> None:
    write(tmp_path, {"job.py": "import numpy\n", ".venv/lib/site-packages/numpy/__init__.py": ""})
    assert set(pack(tmp_path / "job.py", None, None).files) == {"job.py"}


@pytest.mark.parametrize(
    ("files", "include", "message"),
    [
        ({"job.txt": ""}, [], r"job file job.txt is not a Python file"),
        ({}, [], r"job\.py cannot be read \(No such file"),
        ({"job.py": "def"}, [], r"job\.py is no valid Python \(invalid syntax"),
        ({"job.py": "from . import x"}, [], r"job\.py imports \., above the job's folder: move the module"),
        ({"job.py": ""}, ["../x"], r"path '\.\./x' leads out of the bundle"),
        ({"job.py": ""}, ["/etc/hosts"], r"path '/etc/hosts' leads out of the bundle"),
        ({"job.py": "", "a b.txt": ""}, ["a b.txt"], r"path 'a b\.txt' cannot be had everywhere"),
        ({"job.py": "", "A.txt": "", "a.txt": ""}, ["A.txt", "a.txt"], r"differ in capitals alone"),
    ],
)
def test_what_cannot_be_packed_is_named(
    tmp_path: Path, files: dict[str, str], include: list[str], message: str
) -> None:
    job = write(tmp_path, files) / next((name for name in files if name.startswith("job")), "job.py")
    with pytest.raises(BundleError, match=message):
        pack(job, None, None, include=include)


def test_a_link_out_of_the_folder_is_not_packed(tmp_path: Path) -> None:
    write(tmp_path, {"secret.py": "", "job/job.py": "import inner\n"})
    (tmp_path / "job" / "inner.py").symlink_to(tmp_path / "secret.py")
    with pytest.raises(BundleError, match=r"inner\.py is a link out of the job's folder: copy the file"):
        pack(tmp_path / "job" / "job.py", None, None)


def test_an_identity_is_never_packed(league: Federation, tmp_path: Path) -> None:
    league.alice.save(write(tmp_path, {"job.py": ""}) / "alice.pem")
    with pytest.raises(BundleError, match=r"alice\.pem holds a private key, and every worker would read it"):
        pack(tmp_path / "job.py", None, None, include=["alice.pem"])


def test_only_a_submitter_can_sign_a_bundle(league: Federation, tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="'hospital-a' is enrolled as worker, and only a submitter's signature"):
        pack(write(tmp_path, {"job.py": ""}) / "job.py", None, league.worker)


# ---------------------------------------------------------------- whose it is


def test_a_bundle_names_its_submitter(league: Federation, packed: bytes) -> None:
    assert Bundle.open(packed).verify(league.authority.pem) == "alice"


def test_a_bundle_of_a_stranger_is_refused(packed: bytes, tmp_path: Path) -> None:
    stranger = Authority.create(tmp_path, "league")
    with pytest.raises(BundleError, match="signer is unknown to the authority of 'league'"):
        Bundle.open(packed).verify(stranger.pem)


def test_an_unsigned_bundle_is_refused(league: Federation, packed: bytes) -> None:
    entries = unzipped(packed)
    del entries["signature.json"]
    with pytest.raises(BundleError, match="is unsigned: submit it with --identity"):
        Bundle.open(zipped(entries)).verify(league.authority.pem)


def test_a_bundle_signed_by_a_worker_is_refused(league: Federation, packed: bytes) -> None:
    entries = unzipped(packed)
    entries["signature.json"] = league.worker.sign(entries["manifest.json"], purpose="job bundle").dump()
    with pytest.raises(BundleError, match="'hospital-a' is enrolled as worker, not as submitter"):
        Bundle.open(zipped(entries)).verify(league.authority.pem)


def test_a_signature_from_another_bundle_is_refused(league: Federation, packed: bytes, tmp_path: Path) -> None:
    entries = unzipped(packed)
    other = pack(write(tmp_path, {"job.py": "x = 1\n"}) / "job.py", None, league.alice)
    entries["signature.json"] = unzipped(other.dump())["signature.json"]
    with pytest.raises(BundleError, match="'alice' does not belong to this content"):
        Bundle.open(zipped(entries)).verify(league.authority.pem)


def test_a_bundle_of_an_expired_or_revoked_submitter_is_refused(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "a", "league")
    alice = Identity.load(authority.issue("alice", "submitter"))
    bundle = pack(write(tmp_path, {"job.py": ""}) / "job.py", None, alice)
    with pytest.raises(BundleError, match="'alice' expired on .*: run `hansa enrol renew`"):
        bundle.verify(authority.pem, now=datetime.now(UTC) + timedelta(days=366))
    revoked = Revoked.read(authority.revoke("alice").read_bytes(), authority.pem)
    with pytest.raises(BundleError, match="'alice' is revoked"):
        bundle.verify(authority.pem, revoked)


# ---------------------------------------------------------------- opening what a stranger made


def test_an_opened_bundle_is_the_packed_one(packed: bytes, tmp_path: Path) -> None:
    (tmp_path / "job.hansa").write_bytes(packed)
    assert Bundle.open(tmp_path / "job.hansa") == Bundle.open(packed)
    assert Bundle.open(packed).dump() == packed


def tampered_file(entries: dict[str, bytes]) -> None:
    entries["files/helpers.py"] = b"x = 2\n"


def tampered_manifest(entries: dict[str, bytes]) -> None:
    entries["manifest.json"] = entries["manifest.json"].replace(b'"entry": "job.py"', b'"entry": "nix.py"')


def other_format(entries: dict[str, bytes]) -> None:
    entries["manifest.json"] = entries["manifest.json"].replace(b'"format": 1', b'"format": 2')


def loose_manifest(entries: dict[str, bytes]) -> None:
    entries["manifest.json"] += b"\n"


def deep_manifest(entries: dict[str, bytes]) -> None:
    entries["manifest.json"] = b"[" * 200_000


def option_as_requirement(entries: dict[str, bytes]) -> None:
    fields = json.loads(entries["manifest.json"])
    entries["manifest.json"] = module._canonical({**fields, "requires": {"numpy": "--index-url=evil"}})


def unlisted_file(entries: dict[str, bytes]) -> None:
    entries["files/more.py"] = b""


def missing_file(entries: dict[str, bytes]) -> None:
    del entries["files/helpers.py"]


def no_manifest(entries: dict[str, bytes]) -> None:
    del entries["manifest.json"]


def garbage_signature(entries: dict[str, bytes]) -> None:
    entries["signature.json"] = b"{}"


def foreign_entry(entries: dict[str, bytes]) -> None:
    entries["run.sh"] = b""


def escaping(name: str) -> Callable[[dict[str, bytes]], None]:
    def change(entries: dict[str, bytes]) -> None:
        entries["files/" + name] = b""

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (tampered_file, r"file 'helpers\.py' is not what the manifest says: the archive was tampered with"),
        (tampered_manifest, r"manifest is not as Hansa writes it: it was tampered with"),
        (other_format, r"bundle has format 2, this Hansa reads 1"),
        (loose_manifest, r"manifest is not as Hansa writes it"),
        (deep_manifest, r"manifest cannot be read"),
        (option_as_requirement, r"manifest is not as Hansa writes it"),
        (unlisted_file, r"file 'more\.py' is in the bundle but not in its manifest"),
        (missing_file, r"file 'helpers\.py' is missing from the bundle but listed in its manifest"),
        (no_manifest, r"no manifest\.json: it is no job archive"),
        (garbage_signature, r"signature of 2 bytes cannot be read"),
        (foreign_entry, r"foreign entry 'run\.sh'"),
        (escaping("../evil.py"), r"path '\.\./evil\.py' leads out of the bundle"),
        (escaping("/etc/passwd"), r"path '/etc/passwd' leads out of the bundle"),
        (escaping("a/../../evil.py"), r"leads out of the bundle"),
        (escaping("C:evil.py"), r"leads out of the bundle"),
        (escaping("..\\evil.py"), r"leads out of the bundle"),
        (escaping(".bashrc"), r"cannot be had everywhere"),
        (escaping("a//b.py"), r"cannot be had everywhere"),
        (escaping("x" * 300), r"cannot be had everywhere"),
        (escaping("JOB.py"), r"entry 'files/JOB\.py' twice \(capitals apart\)"),
    ],
)  # fmt: skip
def test_a_tampered_archive_is_refused_by_its_fault(
    packed: bytes, change: Callable[[dict[str, bytes]], None], message: str
) -> None:
    entries = unzipped(packed)
    change(entries)
    with pytest.raises(BundleError, match=message):
        Bundle.open(zipped(entries))


def make_link(info: zipfile.ZipInfo) -> None:
    info.external_attr = 0o120777 << 16


def compress(info: zipfile.ZipInfo) -> None:
    info.compress_type = zipfile.ZIP_DEFLATED


def later(info: zipfile.ZipInfo) -> None:
    info.date_time = (2026, 1, 1, 0, 0, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [(make_link, "is a link, a folder or a program"), (compress, "is compressed"), (later, "bytes outside its files")],
)
def test_an_archive_of_another_form_is_refused(
    packed: bytes, change: Callable[[zipfile.ZipInfo], None], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        Bundle.open(zipped(unzipped(packed), change))


def test_hidden_bytes_before_between_and_after_are_refused(packed: bytes) -> None:
    for changed in (b"x" + packed, packed + b"x", packed[:-2] + struct.pack("<H", 5) + b"hello"):
        with pytest.raises(BundleError, match=r"bytes outside its files|no whole archive"):
            Bundle.open(changed)


def test_a_doubled_entry_is_refused(packed: bytes) -> None:
    buffer = io.BytesIO(packed)
    with zipfile.ZipFile(buffer, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(module._zip_entry("files/job.py"), b"evil")
    with pytest.raises(BundleError, match=r"entry 'files/job\.py' twice"):
        Bundle.open(buffer.getvalue())


def test_a_zip_bomb_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self: zipfile.ZipFile, entry: object) -> bytes:
        raise AssertionError("read before it was checked")

    bomb = zipped({"files/zeros.py": b"\0" * 10_000_000}, compress)
    assert len(bomb) < 20_000
    monkeypatch.setattr(zipfile.ZipFile, "read", read)
    with pytest.raises(BundleError, match="is compressed"):
        Bundle.open(bomb)


def test_what_is_larger_than_the_limits_is_refused(
    packed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "job.hansa").write_bytes(packed)
    monkeypatch.setattr(module, "MAX_BYTES", len(packed) - 1)
    for source in (packed, tmp_path / "job.hansa"):
        with pytest.raises(BundleError, match=rf"larger than {len(packed) - 1} bytes: leave data out"):
            Bundle.open(source)
    monkeypatch.undo()
    monkeypatch.setattr(module, "MAX_FILES", 1)
    with pytest.raises(BundleError, match=r"has 2 files > 1|has 4 entries > 1"):
        Bundle.open(packed)
    with pytest.raises(BundleError, match=r"has 2 files > 1: leave data out"):
        pack(write(tmp_path, {"job.py": "import b\n", "b.py": ""}) / "job.py", None, None)


@given(st.binary(max_size=400))
def test_garbage_is_no_bundle(junk: bytes) -> None:
    with pytest.raises(BundleError):
        Bundle.open(junk)


@given(st.data())
def test_every_truncated_bundle_is_refused(packed: bytes, data: st.DataObject) -> None:
    with pytest.raises(BundleError):
        Bundle.open(packed[: data.draw(st.integers(0, len(packed) - 1))])


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_byte_of_a_bundle_can_be_changed_unnoticed(league: Federation, packed: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(packed) - 1))
    junk = data.draw(st.binary(min_size=1, max_size=6))
    changed = packed[:at] + junk + packed[at + len(junk) :]
    if changed == packed:
        return
    with pytest.raises(BundleError):
        Bundle.open(changed).verify(league.authority.pem)


# ---------------------------------------------------------------- using it


def test_extracting_writes_the_files_and_no_others(packed: bytes, tmp_path: Path) -> None:
    entry = Bundle.open(packed).extract(tmp_path / "run" / "code")
    assert entry == tmp_path / "run" / "code" / "job.py"
    assert sorted(path.name for path in entry.parent.iterdir()) == ["helpers.py", "job.py"]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["code"]
    with pytest.raises(BundleError, match="exists already"):
        Bundle.open(packed).extract(entry.parent)


def test_a_failed_extraction_leaves_nothing(packed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(BundleError, match=r"cannot be written to .* \(No space left on device\)"):
        Bundle.open(packed).extract(tmp_path / "code")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_dependency_is_named_with_the_command_that_installs_it(tmp_path: Path) -> None:
    bundle = pack(write(tmp_path, {"job.py": "import numpy, hansa, no_such_thing.sub\n"}) / "job.py", None, None)
    assert bundle.missing() == ["no_such_thing"]
    with pytest.raises(BundleError, match=r"needs no_such_thing, not installed here: .* -m pip install no_such_thing"):
        bundle.check_installed()
    assert "no_such_thing" not in sys.modules


def test_the_description_shows_every_line_and_hides_no_character(league: Federation, tmp_path: Path) -> None:
    evil = "a = 1\r\x1b[2J\n== other.py (0 bytes)\nb = '\u202e'\n"
    write(tmp_path, {"job.py": "x = 1\n", "notes.txt": evil})
    (tmp_path / "table.bin").write_bytes(b"\xff\x00")
    bundle = pack(tmp_path / "job.py", None, league.alice, include=["notes.txt", "table.bin"])
    shown = bundle.describe()
    assert shown.startswith(f"bundle {bundle.hash}\nsigned by alice (as the certificate says; not verified here)\n")
    assert "    1 | x = 1\n" in shown
    assert "    2 | == other.py (0 bytes)\n    3 | b = '\\u202e'\n" in shown
    assert "\\x1b[2J" in shown
    assert "\x1b" not in shown
    assert "== table.bin (2 bytes, sha256" in shown
