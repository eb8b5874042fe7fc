"""`python -m hansa`: the same as the command `hansa`."""

import sys


def main() -> None:
    """Runs the command line, or says what to install for it."""
    try:
        from hansa.app.cli import main as run
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        print(f"error: the command line needs {error.name}: pip install 'hansa[cli]'", file=sys.stderr)
        raise SystemExit(12) from None
    run()


if __name__ == "__main__":
    main()
