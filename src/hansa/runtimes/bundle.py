"""A signed job archive: the job file and the local modules it imports, nothing that is installed and no data of anyone.

    job.hansa, an uncompressed zip archive in one canonical form:
      manifest.json     format, entry, Hansa's version, SHA-256 and size of each file, what must be installed
      files/job.py      … the files in order of their names
      signature.json    the submitter's Ed25519 signature over manifest.json, with its certificate (absent if unsigned)

The hash of a bundle is the SHA-256 of manifest.json, which fixes every byte of every file: the same folder gives the
same hash wherever, whenever and by whomever it is packed (`unzip -p job.hansa manifest.json | sha256sum`).

Reading trusts nothing: limits, names and kinds of entries are checked before a byte is written; then the archive is
built again from what was read, and has to be the same bytes. So there is one reading only of an archive, and whatever
other zip readers might see in it (hidden entries, a second directory, comments) is refused. Nothing is unpickled.
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import os
import re
import secrets
import shutil
import sys
import zipfile
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Self

from hansa import __version__
from hansa.core.errors import BundleError, IdentityError
from hansa.crypto.identity import Identity, Signature, verify
from hansa.crypto.private_file import write_atomically

MAX_BYTES = 64 << 20  # the whole archive
MAX_FILES = 2000

_FORMAT = 1
_PURPOSE = "job bundle"
_MANIFEST, _SIGNATURE, _FILES = "manifest.json", "signature.json", "files/"
_MAX_MANIFEST_BYTES = 1 << 20
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that zip knows
_REGULAR_FILE = 0o100644 << 16
_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,98}[A-Za-z0-9_-])?")
_PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/=]{40}")


@dataclass(frozen=True)
class Bundle:
    """A job archive that has been read and is whole; whose it is, `verify` says.

    bundle = Bundle.open("job.hansa")
    signer = bundle.verify(identity.authority_pem, revoked)
    bundle.check_installed()
    entry = bundle.extract(folder)
    """

    manifest: bytes = field(repr=False)
    files: Mapping[str, bytes] = field(repr=False)
    signature: Signature | None = None

    @classmethod
    def open(cls, source: bytes | str | os.PathLike[str]) -> Self:
        """Reads an archive from its bytes or from a file.

        Raises:
          BundleError: too large, damaged, tampered with, or with an entry that a bundle does not have; says which.
        """
        if not isinstance(source, bytes):
            path = Path(source)
            try:
                with path.open("rb") as file:
                    source = file.read(MAX_BYTES + 1)
            except OSError as error:
                raise BundleError(
                    f"bundle {path} cannot be read ({error.strerror}): give a packed job's path"
                ) from None
        if len(source) > MAX_BYTES:
            raise BundleError(f"bundle is larger than {MAX_BYTES} bytes: leave data out of it, workers bring their own")
        entries = _read_entries(source)
        manifest = entries.pop(_MANIFEST, None)
        dumped = entries.pop(_SIGNATURE, None)
        if manifest is None:
            raise BundleError("bundle has no manifest.json: it is no job archive, pack the job with `hansa submit`")
        files = {name.removeprefix(_FILES): content for name, content in entries.items()}
        _check_manifest(manifest, files)
        try:
            signature = None if dumped is None else Signature.load(dumped)
        except IdentityError as error:
            raise BundleError(f"bundle's {error}") from None
        bundle = cls(manifest, files, signature)
        if bundle.dump() != source:
            raise BundleError("bundle holds bytes outside its files or in another order: pack it with `hansa submit`")
        return bundle

    def dump(self) -> bytes:
        """The archive; equal bundles give equal bytes."""
        entries = {_MANIFEST: self.manifest, **{_FILES + name: self.files[name] for name in sorted(self.files)}}
        if self.signature is not None:
            entries[_SIGNATURE] = self.signature.dump()
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            for name, content in entries.items():
                archive.writestr(_zip_entry(name), content)
        return buffer.getvalue()

    @property
    def hash(self) -> str:
        """SHA-256 of the unsigned content, in hexadecimal: what `--allow hash:` compares."""
        return hashlib.sha256(self.manifest).hexdigest()

    @property
    def entry(self) -> str:
        """The name of the job file within the bundle."""
        return str(self._fields["entry"])

    @property
    def requires(self) -> dict[str, str]:
        """What must be installed: import name to distribution name."""
        return dict(self._fields["requires"])

    def verify(self, authority: bytes, revoked: Container[int] = (), *, now: datetime | None = None) -> str:
        """The name of the submitter who signed this bundle, on the word of `authority` (its certificate, PEM).

        Raises:
          BundleError: unsigned, signed by someone unknown, expired, revoked or no submitter, or signed for other
            content; the message says which.
        """
        if self.signature is None:
            raise BundleError(f"bundle {self.hash[:12]} is unsigned: submit it with --identity")
        try:
            return verify(
                self.signature,
                self.manifest,
                authority,
                role="submitter",
                revoked=revoked,
                purpose=_PURPOSE,
                now=now,
            )
        except IdentityError as error:
            raise BundleError(f"bundle {self.hash[:12]}: {error}") from None

    def missing(self) -> list[str]:
        """The distributions that this bundle needs and this Python lacks; finding out imports nothing."""
        return sorted({name for module, name in self.requires.items() if not _is_installed(module, name)})

    def check_installed(self) -> None:
        """Raises BundleError with the command that installs what is missing."""
        missing = self.missing()
        if missing:
            raise BundleError(
                f"bundle {self.hash[:12]} needs {', '.join(missing)}, not installed here: "
                f"{sys.executable} -m pip install {' '.join(missing)}"
            )

    def extract(self, folder: str | os.PathLike[str]) -> Path:
        """Writes the files into `folder`, which must not exist yet, and returns the path of the job file.

        The folder appears whole or not at all.
        """
        target = Path(folder)
        if target.exists():
            raise BundleError(f"{target} exists already: extract bundle {self.hash[:12]} into a new folder")
        building = target.with_name(f".{target.name}.{secrets.token_hex(6)}")
        try:
            for name, content in self.files.items():
                path = building / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            building.rename(target)
        except OSError as error:
            shutil.rmtree(building, ignore_errors=True)
            raise BundleError(
                f"bundle {self.hash[:12]} cannot be written to {target} ({error.strerror}): choose another folder"
            ) from None
        return target / self.entry

    def describe(self) -> str:
        """Everything that would run, for a person to read before allowing it.

        Lines are numbered and unprintable characters escaped, so that no file can draw a heading, move the cursor or
        reorder what is read. Files that are not text are shown by size and hash.
        """
        try:
            signer = self.signature and self.signature.claimed_signer
        except IdentityError:
            signer = None
        claim = f"{signer.name} (as the certificate says; not verified here)" if signer else "nobody"
        needs = ", ".join(sorted(set(self.requires.values()))) or "nothing"
        head = [f"bundle {self.hash}", f"signed by {claim}", f"entry {self.entry}", f"needs {needs}"]
        return (
            "\n".join([*head, *(line for name in sorted(self.files) for line in _shown(name, self.files[name]))]) + "\n"
        )

    @cached_property
    def _fields(self) -> dict[str, Any]:
        return dict(json.loads(self.manifest))


def pack(
    job_file: str | os.PathLike[str],
    out: str | os.PathLike[str] | None,
    identity: Identity | None,
    *,
    include: Iterable[str] = (),
) -> Bundle:
    """Packs a job file with the local modules it imports, directly or through one another.

    Local means: found beside the job file or below its folder. Imports are read, not run, so modules named only in a
    string (`importlib.import_module`) go into `include`. An import inside `try … except ImportError` or under
    `if TYPE_CHECKING` makes no requirement. Line ends of Python files become `\\n`, which Python reads the same.

    Args:
      job_file: the file that defines the job.
      out: where to write the archive; None writes nothing.
      identity: the submitter's; None leaves the bundle unsigned, for --insecure runs.
      include: further files or folders, relative to the job file's folder.

    Raises:
      BundleError: a file is missing, no Python, outside the job's folder, too large or looks like a private key.
      IdentityError: the identity has expired or is no submitter's.
    """
    if identity is not None:
        identity.check_valid()
        if identity.role != "submitter":
            raise IdentityError(
                f"identity {identity.name!r} is enrolled as {identity.role}, and only a submitter's signature lets a "
                "job run: use an identity that `hansa enrol` made with the role submitter"
            )
    sources = _Sources(Path(job_file).absolute().parent)
    entry = Path(job_file).name
    if not entry.endswith(".py"):
        raise BundleError(f"job file {entry} is not a Python file: give the .py file that defines the job")
    sources.add_module(entry)
    for name in include:
        sources.add_data(name)
    fields = {
        "format": _FORMAT,
        "hansa": __version__,
        "entry": entry,
        "files": {name: _fact(content) for name, content in sources.files.items()},
        "requires": _requirements(sources.installed),
    }
    manifest = _canonical(fields)
    _check_manifest(manifest, sources.files)
    signature = None if identity is None else identity.sign(manifest, purpose=_PURPOSE)
    bundle = Bundle(manifest, sources.files, signature)
    archive = bundle.dump()
    if len(archive) > MAX_BYTES:
        raise BundleError(f"bundle of {len(archive)} bytes > {MAX_BYTES}: leave data out, workers bring their own")
    if out is not None:
        write_atomically(Path(out), archive, mode=0o644)
    return bundle


class _Sources:
    """The files of a bundle to be, found by following imports from the job file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[str, bytes] = {}
        self.installed: set[str] = set()  # dotted names that are imported, and not local

    def add_module(self, name: str) -> None:
        """Takes a Python file (a path under the root) and all that it imports; done before, it does nothing."""
        if name in self.files:
            return
        content = self._read(name).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        self.files[name] = content
        try:
            tree = ast.parse(content, filename=name)
        except (SyntaxError, ValueError, RecursionError) as error:
            raise BundleError(f"{name} is no valid Python ({error}): mend it before packing") from None
        package = PurePosixPath(name).parent.parts
        for wanted in _imports([tree]):
            base = self._base(wanted, package, name)
            found = [self._take(base), *(self._take(f"{base}.{member}") for member in wanted.members)]
            top = base.split(".")[0]
            local = any(found) or wanted.level > 0 or self._take(top)
            if not local and wanted.needed and top != "hansa" and top not in sys.stdlib_module_names:
                self.installed.add(base)

    def add_data(self, name: str) -> None:
        """Takes a file, or a folder without its hidden files."""
        relative = PurePosixPath(Path(name).as_posix())
        path = self.root / relative
        if path.is_dir():
            below = sorted(child.relative_to(self.root).as_posix() for child in path.rglob("*") if child.is_file())
            for child in below:
                if not any(part.startswith(".") or part == "__pycache__" for part in PurePosixPath(child).parts):
                    self.add_data(child)
        elif relative.suffix == ".py":
            self.add_module(str(relative))
        else:
            self.files[str(relative)] = self._read(str(relative))

    def _take(self, module: str) -> bool:
        """Takes a module, with the packages it is in, if it is local; says whether it was."""
        parts = module.split(".")
        if not module or not all(part.isidentifier() for part in parts):
            return False
        path = "/".join(parts)
        own = next((file for file in (f"{path}/__init__.py", f"{path}.py") if (self.root / file).is_file()), None)
        if own is None:
            return False
        for depth in range(1, len(parts)):
            above = "/".join(parts[:depth]) + "/__init__.py"
            if (self.root / above).is_file():
                self.add_module(above)
        self.add_module(own)
        return True

    def _base(self, wanted: "_Import", package: tuple[str, ...], name: str) -> str:
        """The absolute dotted name that an import starts from."""
        if wanted.level == 0:
            return wanted.module
        if wanted.level > len(package):
            raise BundleError(
                f"{name} imports {'.' * wanted.level}{wanted.module}, above the job's folder: "
                "move the module beside the job file and import it by its name"
            )
        above = package[: len(package) - wanted.level + 1]
        return ".".join([*above, *([wanted.module] if wanted.module else [])])

    def _read(self, name: str) -> bytes:
        """A file's bytes, if it lies within the root and holds no key."""
        _check_name(name)
        path = self.root / name
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise BundleError(f"{name} is a link out of the job's folder: copy the file there")
        try:
            if path.stat().st_size > MAX_BYTES:
                raise BundleError(f"{name} has {path.stat().st_size} bytes > {MAX_BYTES}: leave data out of the bundle")
            content = path.read_bytes()
        except OSError as error:
            raise BundleError(f"{name} cannot be read ({error.strerror}): check its name in {self.root}") from None
        if _PRIVATE_KEY.search(content):
            raise BundleError(f"{name} holds a private key, and every worker would read it: leave it out")
        return content


@dataclass(frozen=True)
class _Import:
    """`from {level dots}{module} import {members}`; `needed`: the file cannot do without."""

    module: str
    members: tuple[str, ...] = ()
    level: int = 0
    needed: bool = True


def _imports(nodes: Iterable[ast.AST], needed: bool = True) -> Iterator[_Import]:
    """All imports in and below these nodes, those in functions too."""
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield _Import(alias.name, needed=needed)
        elif isinstance(node, ast.ImportFrom):
            yield _Import(node.module or "", tuple(alias.name for alias in node.names), node.level, needed)
        elif isinstance(node, ast.Try) and any(_catches_import_error(handler) for handler in node.handlers):
            yield from _imports(node.body, needed=False)
            yield from _imports([*node.handlers, *node.orelse, *node.finalbody], needed)
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from _imports(node.body, needed=False)
            yield from _imports(node.orelse, needed)
        else:
            yield from _imports(ast.iter_child_nodes(node), needed)


def _catches_import_error(handler: ast.ExceptHandler) -> bool:
    """Whether a failing import may end in this handler."""
    caught = "" if handler.type is None else ast.unparse(handler.type)
    return handler.type is None or bool(re.search(r"\b(ImportError|ModuleNotFoundError|Exception)\b", caught))


def _requirements(modules: set[str]) -> dict[str, str]:
    """Import name to the distribution that has it here, or to itself where it is not installed."""
    installed = importlib.metadata.packages_distributions() if modules else {}  # it reads them all: 0.3 s
    found: dict[str, str] = {}
    for module in sorted(modules):
        top = module.split(".")[0]
        candidates = sorted(set(installed.get(top, [])))
        if len(candidates) > 1:  # a namespace package: the one with this module's files
            owners = [name for name in candidates if _has_module(name, module)]
            found[module] = (owners or candidates)[0]
        else:
            found[top] = candidates[0] if candidates else top
    return found


def _has_module(distribution: str, module: str) -> bool:
    """Whether a distribution installed a module's files."""
    path = module.replace(".", "/")
    files = importlib.metadata.files(distribution) or []
    return any(file.as_posix().startswith((f"{path}/", f"{path}.")) for file in files)


def _is_installed(module: str, distribution: str) -> bool:
    """Whether an import would be found, without importing anything."""
    try:
        if "." in module:  # looking for it would import its package; the distribution is enough
            return bool(importlib.metadata.version(distribution))
        return module in sys.modules or importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _read_entries(source: bytes) -> dict[str, bytes]:
    """The entries of the archive, each checked before it is read."""
    try:
        with zipfile.ZipFile(io.BytesIO(source)) as archive:
            infos = archive.infolist()
            _check_entries(infos)
            return {info.filename: archive.read(info) for info in infos}
    except BundleError:
        raise
    except Exception as error:  # zipfile raises a dozen kinds on a stranger's bytes, some of them undocumented
        raise BundleError(
            f"bundle of {len(source)} bytes is no whole archive ({type(error).__name__}): send it again"
        ) from None


def _check_entries(infos: list[zipfile.ZipInfo]) -> None:
    """Refuses links, compression, foreign, escaping and doubled names, and more than the limits."""
    if len(infos) > MAX_FILES + 2:
        raise BundleError(f"bundle has {len(infos)} entries > {MAX_FILES}: leave data out of it")
    seen: set[str] = set()
    for info in infos:
        name = info.orig_filename  # `filename` has lost what follows a zero byte
        if name.casefold() in seen:
            raise BundleError(f"bundle has the entry {name!r} twice (capitals apart): rename one and pack again")
        seen.add(name.casefold())
        if name not in (_MANIFEST, _SIGNATURE):
            if not name.startswith(_FILES):
                raise BundleError(f"bundle has a foreign entry {name!r}: pack it with `hansa submit`")
            _check_name(name.removeprefix(_FILES))
        if info.external_attr != _REGULAR_FILE:
            raise BundleError(f"bundle's entry {name!r} is a link, a folder or a program: only plain files are allowed")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise BundleError(f"bundle's entry {name!r} is compressed: pack it with `hansa submit`")
    total = sum(info.file_size for info in infos)
    if total > MAX_BYTES:
        raise BundleError(f"bundle says to hold {total} bytes > {MAX_BYTES}: it is no job archive")


def _check_name(name: str) -> None:
    """Refuses names that leave the folder or that some file system cannot have."""
    if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) or ":" in name or "\\" in name:
        raise BundleError(f"path {name!r} leads out of the bundle: put the file below the job's folder")
    if len(name) > 240 or not all(_PART.fullmatch(part) for part in name.split("/")):
        raise BundleError(
            f"path {name[:260]!r} cannot be had everywhere: use up to 240 ASCII letters, digits, '_', '-', '.' "
            "and '/', no leading or closing dots"
        )


def _check_manifest(manifest: bytes, files: Mapping[str, bytes]) -> None:
    """The manifest is canonical and says of the files exactly what is true."""
    listed = _listed(manifest)
    for name in sorted(set(listed) ^ set(files)):
        where = "is in the bundle but not in" if name in files else "is missing from the bundle but listed in"
        raise BundleError(f"file {name!r} {where} its manifest: the archive was tampered with, send it again")
    for name in sorted(listed):
        if listed[name] != _fact(files[name]):
            raise BundleError(
                f"file {name!r} is not what the manifest says: the archive was tampered with, send it again"
            )
    folded = {name.casefold() for name in files}
    if len(folded) < len(files):
        raise BundleError("bundle has names that differ in capitals alone: rename one of the files and pack again")
    if len(files) > MAX_FILES:
        raise BundleError(f"bundle has {len(files)} files > {MAX_FILES}: leave data out of it")
    for name in files:
        if any(str(parent).casefold() in folded for parent in PurePosixPath(name).parents):
            raise BundleError(f"path {name!r} lies below a file: rename one of them and pack again")


def _listed(manifest: bytes) -> dict[str, object]:
    """What a manifest says of each file; BundleError if Hansa does not write such a manifest."""
    if len(manifest) > _MAX_MANIFEST_BYTES:
        raise BundleError(f"bundle's manifest has {len(manifest)} bytes > {_MAX_MANIFEST_BYTES}: include fewer files")
    try:
        fields = json.loads(manifest)
        version, listed, requires = fields["format"], dict(fields["files"]), fields["requires"]
        texts = [fields["hansa"], fields["entry"], *requires, *requires.values()]
        plain = _canonical(fields) == manifest and set(fields) == {"format", "hansa", "entry", "files", "requires"}
        plain = plain and all(isinstance(text, str) and _PART.fullmatch(text) for text in texts)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise BundleError("bundle's manifest cannot be read: it was damaged or tampered with, send it again") from None
    if version != _FORMAT:
        raise BundleError(f"bundle has format {version!r}, this Hansa reads {_FORMAT}: install the submitter's Hansa")
    if not plain or fields["entry"] not in listed:
        raise BundleError("bundle's manifest is not as Hansa writes it: it was tampered with, pack it again")
    return listed


def _fact(content: bytes) -> dict[str, object]:
    """What the manifest says of one file."""
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _canonical(fields: object) -> bytes:
    """The one JSON text of these fields."""
    return (json.dumps(fields, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def _zip_entry(name: str) -> zipfile.ZipInfo:
    """An entry's head, the same on every machine."""
    info = zipfile.ZipInfo(name, _EPOCH)
    info.create_system = 3  # Unix, on Windows too
    info.external_attr = _REGULAR_FILE
    return info


def _shown(name: str, content: bytes) -> Iterator[str]:
    """One file as numbered lines."""
    yield ""
    yield f"== {name} ({len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()})"
    try:
        text = content.decode()
    except UnicodeDecodeError:
        yield "   (not text)"
        return
    for number, line in enumerate(text.split("\n"), start=1):
        shown = "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in line)
        yield f"{number:5} | {shown}"
