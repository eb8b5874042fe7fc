"""The structure that docs/design.md promises, proven over the syntax tree of every file.

Imports inside functions count as much as those at the top. Each rule is a function from sources to complaints and is
run twice: over `src/hansa`, where it must find nothing, and over tiny bad sources, where it must find the fault, so
that no rule can rot into one that passes everything.
"""

import ast
import io
import tokenize
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "hansa"

ROOMS = (
    *("core", "data", "crypto", "privacy", "stages", "algorithms", "adapters"),
    *("runtimes", "mpc", "vertical", "analytics", "fleet", "remote", "app"),
)
FACE = ("", "__main__")  # hansa/__init__.py and hansa/__main__.py stand above every room
OUTWARD = {"socket", "ssl", "grpc", "ray", "sqlite3", "sqlalchemy", "subprocess"}
OUTWARD_ROOMS = {"runtimes", "fleet", "remote", "app"}
FILE_FORMATS = {"data": {"sqlite3"}}  # what reads files, and reaches nothing else, from such a room
FRAMEWORKS = {"torch", "jax", "keras", "sklearn", "xgboost", "tensorflow", "flax"}
# data: the bundled data sets; testing: attacks that differentiate through a network's own update
FRAMEWORK_ROOMS = {
    "adapters": FRAMEWORKS,
    "mpc": {"torch"},
    "vertical": {"torch"},
    "data": {"sklearn"},
    "testing": {"torch"},
}
AUDIT = "app/audit.py"  # the one file beside tests that may attack: `hansa audit` is for users
UNSAFE = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "jsonpickle"}
VAGUE = {"utils", "util", "common", "helpers", "helper", "misc"}
# All that the core may import besides NumPy and itself: nothing here opens a file or socket, starts a process or
# thread, or reads a clock. hashlib: fingerprints; json and struct: the checkpoint's layout; importlib and inspect:
# callables named as module:qualname; io is left out on purpose, it can open files.
CORE_MAY = {
    *("abc", "bisect", "collections", "contextlib", "copy", "dataclasses", "difflib", "enum", "fractions", "functools"),
    *("hashlib", "heapq", "importlib", "inspect", "itertools", "json", "math", "numbers", "operator", "re", "string"),
    *("struct", "sys", "textwrap", "types", "typing", "warnings", "weakref", "__future__", "numpy"),
}
CORE_LINES = 1780


@dataclass(frozen=True)
class Source:
    """One file of the package: its path under src/hansa and its text."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def module(self) -> str:
        parts = self.path.removesuffix(".py").split("/")
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def room(self) -> str:
        return self.module.split(".")[0]

    @cached_property
    def imports(self) -> list[tuple[int, str]]:
        """(line, absolute dotted name) of everything imported, `from a import b` as a.b, at any depth of the file."""
        found: list[tuple[int, str]] = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found += [(node.lineno, name.name) for name in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    package = ["hansa", *self.path.split("/")[:-1]]
                    base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [base])])
                found += [(node.lineno, f"{base}.{name.name}") for name in node.names]
            elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__") and node.args:
                name = node.args[0]
                if isinstance(name, ast.Constant) and isinstance(name.value, str):
                    found.append((node.lineno, name.value))
        return found


Rule = Callable[[list[Source]], Iterable[str]]


def _called(call: ast.Call) -> str:
    """The last name of what is called: `load` for numpy.load(...)."""
    return ast.unparse(call.func).rsplit(".", 1)[-1]


def _calls(source: Source) -> Iterator[tuple[int, str, ast.Call]]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func), node


def package() -> list[Source]:
    """Every file of ours; generated messages and the templates that `hansa new` writes are not ours to order."""
    paths = [path.relative_to(PACKAGE) for path in sorted(PACKAGE.rglob("*.py"))]
    ours = [path for path in paths if not path.name.endswith("_pb2.py") and "templates" not in path.parts]
    return [Source(path.as_posix(), (PACKAGE / path).read_text(encoding="utf-8")) for path in ours]


# ── the rules ────────────────────────────────────────────────────────────────────────────────────────────────────────


def rooms_out_of_order(sources: list[Source]) -> Iterator[str]:
    for source in sources:
        if source.module in FACE:
            continue
        if source.room not in (*ROOMS, "testing"):
            yield f"{source.path}: '{source.room}' is no room of docs/design.md"
            continue
        allowed = ROOMS[: ROOMS.index("fleet") + 1] if source.room == "testing" else ROOMS[: ROOMS.index(source.room)]
        for line, name in source.imports:
            parts = name.split(".")
            if parts[0] != "hansa" or name == "hansa.__version__":
                continue
            if len(parts) == 1 or parts[1] not in (*ROOMS, "testing"):
                if source.room != "app":
                    yield f"{source.path}:{line} imports the face ({name}): import from the room itself"
            elif source.path == AUDIT and name.startswith("hansa.testing.attacks"):
                continue
            elif parts[1] not in (*allowed, source.room):
                yield f"{source.path}:{line} imports {name}: '{source.room}' may only look at the rooms before it"


def outward_imports(sources: list[Source]) -> Iterator[str]:
    for source in sources:
        for line, name in source.imports:
            library = name.split(".")[0]
            if library in OUTWARD - FILE_FORMATS.get(source.room, set()) and source.room not in OUTWARD_ROOMS:
                yield f"{source.path}:{line} imports {name}, which only {sorted(OUTWARD_ROOMS)} may"


def stray_frameworks(sources: list[Source]) -> Iterator[str]:
    for source in sources:
        for line, name in source.imports:
            library = name.split(".")[0]
            if library in FRAMEWORKS and library not in FRAMEWORK_ROOMS.get(source.room, ()):
                yield f"{source.path}:{line} imports {name}: learning frameworks belong in adapters"


def unsafe_loading(sources: list[Source]) -> Iterator[str]:
    for source in sources:
        for line, name in source.imports:
            parts = name.split(".")
            if parts[0] in UNSAFE or parts[-1] in UNSAFE:
                yield f"{source.path}:{line} imports {name}: nothing that came from a network or file is unpickled"
        for line, name, call in _calls(source):
            options = {option.arg: ast.unparse(option.value) for option in call.keywords}
            if name.endswith("load") and options.get("allow_pickle", "False") != "False":
                yield f"{source.path}:{line} loads with allow_pickle={options['allow_pickle']}"
            if name == "torch.load" and options.get("weights_only") != "True":
                yield f"{source.path}:{line} calls torch.load without weights_only=True"
            if name.endswith("read_pickle"):
                yield f"{source.path}:{line} calls {name}"


def vague_names(sources: list[Source]) -> Iterator[str]:
    for source in sources:
        for part in source.path.removesuffix(".py").split("/"):
            if part.strip("_") in VAGUE:
                yield f"{source.path}: '{part}' says nothing of what it holds"


def hollow_folders(sources: list[Source]) -> Iterator[str]:
    """Folders in which no file has any code: a room appears when it has something in it."""
    full = {parent for source in sources if lines_of_code(source.text) for parent in Path(source.path).parents}
    for folder in sorted({Path(source.path).parent for source in sources} - full):
        yield f"{folder}/ holds no code"


def impure_core(sources: list[Source]) -> Iterator[str]:
    for source in sources:
        if source.room != "core":
            continue
        for line, name in source.imports:
            if name.split(".")[0] not in CORE_MAY | {"hansa"}:
                yield f"{source.path}:{line} imports {name}: the core has no sockets, files, processes or clocks"
        for line, name, _ in _calls(source):
            reads = name.split(".")[0] in ("np", "numpy") and name.split(".")[-1] in (
                *("load", "save", "savez", "savetxt", "loadtxt", "fromfile", "memmap", "genfromtxt", "open_memmap"),
            )
            if name in ("open", "input", "exec", "eval", "print") or reads:
                yield f"{source.path}:{line} calls {name}: the core has no files and no terminal"


def lines_of_code(text: str) -> int:
    """Lines that hold anything but a docstring, a comment or white space."""
    docstrings: set[int] = set()  # with those below an attribute: any string that is a statement of its own
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            docstrings.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    idle = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in idle:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def overgrown_core(sources: list[Source]) -> Iterator[str]:
    sizes = {source.path: lines_of_code(source.text) for source in sources if source.room == "core"}
    if sum(sizes.values()) >= CORE_LINES:
        yield f"the core has {sum(sizes.values())} lines of code, {CORE_LINES} is one sitting: {sizes}"


def undocumented(sources: list[Source]) -> Iterator[str]:
    for source in sources:
        public = not any(part.startswith("_") for part in source.module.split("."))
        if lines_of_code(source.text) and not ast.get_docstring(source.tree):
            yield f"{source.path} has no docstring that says what it is"
        for node in source.tree.body if public else ():
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith(
                "_"
            ):
                overload = any(ast.unparse(mark).endswith("overload") for mark in node.decorator_list)
                if not overload and not ast.get_docstring(node):
                    yield f"{source.path}:{node.lineno} {node.name} has no docstring"


RULES: dict[Rule, dict[str, str]] = {  # rule: bad files it must catch, path to text
    rooms_out_of_order: {
        "core/a.py": "def f():\n    from hansa.app import cli",
        "core/b.py": "from hansa.stages.clip import Clip",
        "core/c.py": "import hansa",
        "core/d.py": "from hansa import Job",
        "core/e.py": "from ..stages import clip",
        "core/f.py": "from importlib import import_module\nimport_module('hansa.data')",
        "core/g.py": "from hansa import stages",
        "stages/h.py": "from hansa.testing import clock",
        "testing/i.py": "import hansa.remote",
        "app/j.py": "from hansa.testing.attacks import linear",
        "app/audit.py": "from hansa.testing import models",
        "stray.py": "",
    },
    outward_imports: {
        f"{room}/{name}.py": f"def f():\n    import {name}"
        for room in ("core", "testing", "mpc")
        for name in sorted(OUTWARD)
    },
    stray_frameworks: {
        "core/a.py": "import torch",
        "data/b.py": "import jax.numpy as jnp",
        "mpc/c.py": "from sklearn import svm",
        "runtimes/d.py": "def f():\n    import keras",
    },
    unsafe_loading: {
        **{f"app/{name}.py": f"import {name}" for name in sorted(UNSAFE)},
        "app/a.py": "import numpy as np\nnp.load(f, allow_pickle=True)",
        "app/b.py": "import numpy as np\nnp.load(f, allow_pickle=flag)",
        "adapters/c.py": "import torch\ntorch.load(f)",
        "adapters/d.py": "import torch\ntorch.load(f, weights_only=False)",
        "data/e.py": "pandas.read_pickle(f)",
        "data/f.py": "from multiprocessing.reduction import pickle",
    },
    vague_names: {"core/utils.py": "", "stages/common/sums.py": "", "app/_helpers.py": ""},
    hollow_folders: {"fleet/__init__.py": '"""Soon."""'},
    impure_core: {
        **{f"core/{name}.py": f"def f():\n    import {name}" for name in ("os", "time", "pathlib", "threading", "io")},
        **{
            f"core/x{name}.py": f"from {name} import x"
            for name in ("datetime", "asyncio", "random", "secrets", "torch")
        },
        "core/a.py": "open('x')",
        "core/b.py": "import numpy as np\nnp.load('x')",
    },
    overgrown_core: {"core/a.py": "x = 1\n" * CORE_LINES},
    undocumented: {
        "data/a.py": "x = 1",
        "data/b.py": '"""B."""\ndef f(): ...',
        "data/c.py": '"""C."""\nclass C: ...',
        "data/d.py": '"""D."""\nasync def f(): ...',
    },
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_obeys(rule: Rule) -> None:
    sources = package()
    assert sources, "no sources were found, so nothing was proven"
    complaints = list(rule(sources))
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [(rule, path, text) for rule, files in RULES.items() for path, text in files.items()],
    ids=lambda value: getattr(value, "__name__", None) or (value if str(value).endswith(".py") else ""),
)
def test_the_rule_catches(rule: Rule, path: str, text: str) -> None:
    assert list(rule([Source(path, text)])), f"{rule.__name__} does not see what is wrong with {text!r}"


def test_rules_let_good_sources_pass() -> None:
    good = [
        Source("__init__.py", '"""The face."""\nfrom hansa.app import cli\n'),
        Source(
            "core/tensors.py",
            '"""T."""\nimport json\nimport numpy as np\nfrom hansa.core import errors\n_x = np.ones(1)\n',
        ),
        Source(
            "runtimes/grpc/server.py",
            '"""S."""\nimport grpc\nfrom hansa import __version__\nfrom hansa.core.job import Job\n',
        ),
        Source("adapters/torch.py", '"""A."""\nimport torch\n_x = torch.load(_f, weights_only=True)\n'),
        Source("app/new.py", '"""N."""\nimport hansa\n'),
        Source("testing/clock.py", '"""C."""\nfrom hansa.fleet import plans\n'),
    ]
    assert [complaint for rule in RULES for complaint in rule(good)] == []


def test_lines_of_code_leave_out_docstrings_comments_and_blank_lines() -> None:
    text = '"""One.\n\nTwo."""\n\n# comment\nx = 1  # counts\n\ndef f():\n    """Doc."""\n    return """a\n    b"""\n'
    assert lines_of_code(text) == 4


def test_no_folder_of_the_package_is_empty() -> None:
    for folder in (path for path in PACKAGE.rglob("*") if path.is_dir() and path.name != "__pycache__"):
        assert any(path.is_file() and path.suffix != ".pyc" for path in folder.rglob("*")) or (
            [path.name for path in folder.iterdir()] == ["__pycache__"]  # what git leaves behind of a folder that moved
        ), f"{folder.relative_to(ROOT)} is empty"


def test_testing_is_imported_by_tests_alone_but_for_the_audit() -> None:
    stray = [
        f"{source.path}:{line}"
        for source in package()
        for line, name in source.imports
        if name.startswith("hansa.testing") and source.room != "testing"
        if not (source.path == AUDIT and name.startswith("hansa.testing.attacks"))
    ]
    assert stray == []


# ── errors and their exit codes ──────────────────────────────────────────────────────────────────────────────────────


def exit_code_faults(codes: dict[str, int], page: str) -> Iterator[str]:
    """What is wrong between the exceptions (name to exit code) and the rows `| code | name | meaning | remedy |`."""
    rows: dict[str, tuple[str, ...]] = {}
    for line in page.splitlines():
        cells = tuple(cell.strip() for cell in line.strip().strip("|").split("|"))
        if line.startswith("|") and len(cells) == 4 and cells[0].isdigit():
            rows[cells[1].strip("`")] = cells
    by_code: dict[int, str] = {}
    for name, code in codes.items():
        if code in by_code:
            yield f"{name} and {by_code[code]} share the exit code {code}"
        by_code[code] = name
        if not 0 < code < 126 or code == 2:
            yield f"{name} has the exit code {code}, which shells use otherwise"
        if name not in rows:
            yield f"{name} has no row in docs/reference/exit-codes.md"
            continue
        listed, _, meaning, remedy = rows[name]
        if int(listed) != code:
            yield f"{name} ends with {code}, and the page says {listed}"
        if not meaning or not remedy:
            yield f"{name} has no meaning or no remedy on the page"
    for name in rows.keys() - codes.keys():
        if rows[name][0] not in ("0", "2", "130"):
            yield f"the page lists {name}, which core/errors.py does not have"


def test_each_exception_has_its_own_documented_exit_code() -> None:
    from hansa.core import errors

    classes = [
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.HansaError)
    ]
    inherited = [cls.__name__ for cls in classes if "exit_code" not in vars(cls)]
    assert inherited == [], "each exception states its own exit_code"
    page = (ROOT / "docs" / "reference" / "exit-codes.md").read_text(encoding="utf-8")
    assert list(exit_code_faults({cls.__name__: cls.exit_code for cls in classes}, page)) == []
    tree = errors.__doc__ or ""
    undrawn = [cls.__name__ for cls in classes if f"{cls.__name__} " not in tree or str(cls.exit_code) not in tree]
    assert undrawn == [], "the tree atop errors.py draws every exception"


@pytest.mark.parametrize(
    ("codes", "page", "complaint"),
    [
        ({"A": 3, "B": 3}, "| 3 | `A` | m | r |\n| 3 | `B` | m | r |", "share the exit code 3"),
        ({"A": 3}, "", "no row"),
        ({"A": 3}, "| 4 | `A` | m | r |", "the page says 4"),
        ({"A": 3}, "| 3 | `A` | m | |", "no remedy"),
        ({"A": 2}, "| 2 | `A` | m | r |", "shells use otherwise"),
        ({}, "| 9 | `Gone` | m | r |", "does not have"),
    ],
)
def test_exit_code_faults_are_seen(codes: dict[str, int], page: str, complaint: str) -> None:
    assert complaint in "\n".join(exit_code_faults(codes, page))
