"""An mkdocs hook: one reference page for each public module that exists, in the order of the rooms.

Nothing is written to docs/: the pages live in memory while the site is built, so a new module has its page at once.
"""

from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOMS = (
    *("core", "data", "crypto", "privacy", "stages", "algorithms", "adapters", "runtimes"),
    *("mpc", "vertical", "analytics", "fleet", "remote", "app", "testing"),
)

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "hansa"


def modules(room: str) -> list[str]:
    """The public modules of one room as dotted names below `hansa.`, packages first."""
    found = []
    for path in sorted((PACKAGE / room).rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        hidden = any(part.startswith("_") or part.endswith("_pb2") or part == "templates" for part in parts)
        if not hidden and path.read_text(encoding="utf-8").strip():
            found.append(".".join(parts))
    return sorted(found)


def page(module: str) -> str:
    """The address of a module's page."""
    return f"reference/{module.replace('.', '/')}{'/index' if (PACKAGE / module.replace('.', '/')).is_dir() else ''}.md"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the pages below "Reference"."""
    reference = next(
        entry["Reference"] for entry in config.nav or [] if isinstance(entry, dict) and "Reference" in entry
    )
    for room in ROOMS:
        pages: list[dict[str, Any]] = [{module: page(module)} for module in modules(room)]
        if pages:
            reference.append({room: pages})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Makes the pages, each an order to mkdocstrings."""
    for room in ROOMS:
        for module in modules(room):
            content = f"# `hansa.{module}`\n\n::: hansa.{module}\n"
            files.append(File.generated(config, page(module), content=content))
    return files
