"""What `import hansa` promises: it is cheap, its names can be had, and a missing library says how to install it."""

import ast
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hansa

# Runs in a fresh interpreter with no site-packages but NumPy's: any other library there is as good as absent.
ALONE = """
import importlib.abc, json, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in sys.stdlib_module_names | {"hansa", "numpy"}:
            raise ModuleNotFoundError(f"No module named {name!r} (hidden by the test)", name=name)
before = set(sys.modules)
sys.meta_path.insert(0, Absent())
"""
NEEDS = {
    "TorchModel": "torch",
    "JaxModel": "jax",
    "KerasModel": "keras",
    "SklearnModel": "sklearn",
    "Ray": "ray",
    "SecureSum": "cryptography",
    "MpcSum": "cryptography",
    "HeSum": "tenseal",
}
NUMPY_ALONE = [
    name
    for module, names in hansa._NAMES.items()
    for name in names
    if module.startswith(("core.", "stages.")) and name not in NEEDS
] + ["FedAvg", "FedAdam", "Scaffold", "FedBuff", "LinearModel", "LogisticModel", "MLPModel", "Local", "train", "errors"]


def run(code: str) -> str:
    """What the code prints in an interpreter where NumPy is the only library."""
    done = subprocess.run([sys.executable, "-c", ALONE + code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_hansa_loads_numpy_at_most() -> None:
    loaded = run("import hansa\nprint(json.dumps(sorted(set(sys.modules) - before)))")
    rooms = {name.split(".")[0] for name in json.loads(loaded)} - set(sys.stdlib_module_names)
    assert rooms <= {"hansa", "numpy"}


def test_core_stages_algorithms_and_the_numpy_models_need_numpy_alone() -> None:
    said = run(f"""
import hansa
faults = []
for name in {NUMPY_ALONE}:
    try: getattr(hansa, name)
    except Exception as error: faults.append(f"{{name}}: {{error}}")
print(json.dumps(faults))
""")
    assert json.loads(said) == []


@pytest.mark.parametrize(("name", "library"), NEEDS.items())
def test_missing_library_ends_in_an_error_that_says_what_to_install(name: str, library: str) -> None:
    said = run(f"import hansa\ntry: hansa.{name}\nexcept hansa.errors.MissingExtra as error: print(error)")
    assert f"pip install 'hansa[{library}]'" in said


@pytest.mark.parametrize("name", [*hansa._HOMES, *hansa._MODULES])
def test_public_name_is_there(name: str) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    assert getattr(hansa, name) is not None
    assert name in dir(hansa)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'FedMagic'"):
        _ = hansa.FedMagic


def test_type_checkers_see_the_same_names_as_programs() -> None:
    tree = ast.parse(inspect.getsource(hansa))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {
        f"{node.module}.{name.name}" for node in block.body if isinstance(node, ast.ImportFrom) for name in node.names
    }
    homes = {f"hansa.{module}.{name}" for name, module in hansa._HOMES.items()}
    assert seen == homes | {f"hansa.{module}" for module in hansa._MODULES.values()}


def test_version_is_stated_once() -> None:
    from importlib.metadata import version

    assert version("hansa") == hansa.__version__


def test_pyproject_asks_for_numpy_alone_and_bounds_each_library() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert [need.split(">=")[0] for need in project["dependencies"]] == ["numpy"]
    needs = [need for extra in project["optional-dependencies"].values() for need in extra]
    assert [need for need in needs if ">=" not in need and not need.startswith("hansa[")] == []


def test_protobuf_bound_is_not_below_the_compiler_that_made_our_messages() -> None:
    root = Path(__file__).parents[1]
    bound = re.search(r'"protobuf>=([\d.]+)"', (root / "pyproject.toml").read_text(encoding="utf-8"))
    assert bound is not None
    for path in (root / "src").rglob("*_pb2.py"):
        made = re.search(r"# Protobuf Python Version: ([\d.]+)", path.read_text(encoding="utf-8"))
        assert made is not None, f"{path.name} does not say which protobuf it needs"
        assert [int(part) for part in made[1].split(".")] <= [int(part) for part in bound[1].split(".")], path.name
