"""Leaves out the doctests of modules whose library is not installed, so that the tests run with any set of extras."""

from importlib.util import find_spec

_NEEDS = {  # part of the tree: the libraries its modules import when they are imported
    "src/hansa/adapters/torch*": ("torch",),
    "src/hansa/adapters/jax*": ("jax",),
    "src/hansa/adapters/keras*": ("keras",),
    "src/hansa/adapters/sklearn*": ("sklearn",),
    "src/hansa/crypto/*": ("cryptography",),
    "src/hansa/runtimes/grpc/*": ("grpc", "google.protobuf", "cryptography"),
    "src/hansa/runtimes/store*": ("sqlalchemy", "fsspec"),
    "src/hansa/runtimes/bundle*": ("cryptography",),
    "src/hansa/app/*": ("typer", "rich", "cryptography", "grpc", "sqlalchemy"),
}


def _installed(library: str) -> bool:
    try:
        return find_spec(library) is not None
    except ModuleNotFoundError:
        return False


collect_ignore_glob = [part for part, libraries in _NEEDS.items() if not all(map(_installed, libraries))]
collect_ignore_glob += ["src/hansa/*_pb2.py", "src/hansa/app/templates/*"]
