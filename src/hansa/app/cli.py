"""The top of the `hansa` command line; its commands are in `app/commands/`.

Global options (`--format`, `--verbose`) may stand anywhere on the line. Every failure ends in `terminal.fail`: a
sentence, and the exit code of its class in `core/errors.py`.
"""

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hansa.app import terminal
from hansa.app.commands import columns, federation, jobs
from hansa.app.commands.enrolment import enrol
from hansa.app.commands.privacy import privacy
from hansa.app.commands.shares import mpc

_GLOBAL_FLAGS = ("--verbose",)
_GLOBAL_VALUES = ("--format",)


def globals_first(args: Sequence[str]) -> list[str]:
    """The same arguments with the global options in front, where the group looks for them.

    >>> globals_first(["list", "--format", "json", "--", "--verbose"])
    ['--format', 'json', 'list', '--', '--verbose']
    """
    front: list[str] = []
    rest: list[str] = []
    waiting = list(args)
    while waiting:
        word = waiting.pop(0)
        if word == "--":
            rest += [word, *waiting]
            break
        if word in _GLOBAL_FLAGS or word.startswith(tuple(f"{option}=" for option in _GLOBAL_VALUES)):
            front.append(word)
        elif word in _GLOBAL_VALUES and waiting:
            front += [word, waiting.pop(0)]
        else:
            rest.append(word)
    return front + rest


class Commands(TyperGroup):
    """The top of the command line: takes global options anywhere, and turns errors into sentences and exit codes."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        """As Typer's, with the arguments in order."""
        terminal.settings.format, terminal.settings.verbose, terminal.settings.results = "text", False, None
        return super().main(globals_first(sys.argv[1:] if args is None else args), *rest, **options)

    def invoke(self, ctx: Any) -> Any:
        """As Typer's; nothing but its own exits leaves it."""
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, MemoryError, RecursionError) as error:
            raise typer.Exit(terminal.fail(error)) from None
        except BrokenPipeError:
            sys.stderr.close()  # whoever read our output has seen enough
            raise typer.Exit(0) from None
        except Exception as error:
            if type(error).__module__.startswith(("typer", "click")):
                if terminal.settings.json and hasattr(error, "format_message"):
                    raise typer.Exit(terminal.misused(error.format_message())) from None
                raise
            raise typer.Exit(terminal.fail(error)) from None


app = typer.Typer(
    cls=Commands,
    name="hansa",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Every failure says what to do and ends with a documented code: docs/reference/exit-codes.md",
)
for module in (jobs, federation, columns):
    app.add_typer(module.commands)
app.add_typer(jobs.job, name="job", rich_help_panel=jobs.PANEL)
app.add_typer(privacy, name="privacy", rich_help_panel=jobs.PANEL)
app.add_typer(mpc, name="mpc", rich_help_panel="Secret shares")
app.add_typer(enrol, name="enrol", rich_help_panel=federation.PANEL)


def _version(wanted: bool) -> None:
    if wanted:
        from hansa import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def top(
    ctx: typer.Context,
    format: Annotated[
        str, typer.Option("--format", metavar="text|json", help="Text for people, or JSON lines.")
    ] = "text",
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and end.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Federated learning: one job description, from a simulation on a laptop to a federation of organisations.

    A first run:  hansa new first && hansa simulate first/job.py
    """
    if format not in ("text", "json"):
        raise typer.BadParameter("choose text or json", param_hint="--format")
    terminal.settings.format, terminal.settings.verbose = format, verbose
    if format == "json":  # what a job file prints is no result: it goes to stderr
        results = terminal.settings.results = sys.stdout
        sys.stdout = sys.stderr
        ctx.call_on_close(lambda: setattr(sys, "stdout", results))


def main(args: Sequence[str] | None = None) -> None:
    """The console script: runs one command and ends the process with its exit code."""
    app(args=args, prog_name="hansa")


if __name__ == "__main__":
    main()
