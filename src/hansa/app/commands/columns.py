"""Owners of different columns of the same people."""

from pathlib import Path
from typing import Annotated

import typer

from hansa.app.commands.options import IdentityFile

PANEL = "Different columns"
commands = typer.Typer()

Me = Annotated[str | None, typer.Option("--me", metavar="NAME", help="Your name; its identity is NAME.pem.")]
PartiesFile = Annotated[
    Path, typer.Option("--parties", metavar="FILE.TOML", help="Who takes part, the same file at each.")
]
Accepted = Annotated[bool, typer.Option("--yes", help="Accept what each party learns without being asked.")]
Wait = Annotated[float, typer.Option("--wait", metavar="SECONDS", help="For the other parties to come.")]


def _steps(normalise: str) -> list[str]:
    return [] if normalise == "none" else normalise.split(",")


@commands.command("psi", rich_help_panel=PANEL)
def psi_(
    key: Annotated[
        list[str],
        typer.Option("--key", metavar="COLUMN", help="A column of the key; repeatable: together they are the key."),
    ],
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FILE.CSV", help="Your table; a coordinator has none.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.CSV", help="Your shared rows, in the common order.")
    ] = None,
    me: Me = None,
    parties: PartiesFile = Path("parties.toml"),
    identity: IdentityFile = None,
    normalise: Annotated[
        str, typer.Option("--normalise", metavar="STEPS", help="Of keys: strip,nfkc,casefold,digits,alnum, or none.")
    ] = "strip,nfkc,casefold",
    duplicates: Annotated[
        str, typer.Option("--duplicates", metavar="refuse|first", help="What to do with a key that occurs again.")
    ] = "refuse",
    find: Annotated[
        str, typer.Option("--find", metavar="WHAT", help="rows, unbalanced, size or sum; see the docs.")
    ] = "rows",
    protocol: Annotated[
        str | None,
        typer.Option("--protocol", metavar="NAME", help="Rows: ecdh (default), fast, coordinator or many."),
    ] = None,
    coordinator: Annotated[
        str | None, typer.Option("--coordinator", metavar="NAME", help="Rows: the party without a table, if any.")
    ] = None,
    learns: Annotated[
        list[str] | None, typer.Option("--learns", metavar="NAME", help="Who learns the result. Of rows: every owner.")
    ] = None,
    cap: Annotated[
        int | None, typer.Option("--cap", metavar="N", help="The most keys that an owner may enter, or ask about.")
    ] = None,
    bucket_keys: Annotated[
        int | None, typer.Option("--bucket-keys", metavar="N", help="About how many keys are in memory.")
    ] = None,
    prepared: Annotated[
        Path | None,
        typer.Option("--prepared", metavar="DIR", help="Unbalanced: of the large set; at the small, of its tags."),
    ] = None,
    epsilon: Annotated[float | None, typer.Option("--epsilon", help="Size: ε of noise on it. Default: exact.")] = None,
    delta: Annotated[float | None, typer.Option("--delta", help="Size: where ε may not hold. Default: 1e-9.")] = None,
    values: Annotated[
        str | None, typer.Option("--values", metavar="COLUMN", help="Sum: what is summed; at its owner alone.")
    ] = None,
    least: Annotated[
        int | None, typer.Option("--least", metavar="N", help="Sum: of fewer shared keys there is none. Default: 10.")
    ] = None,
    yes: Accepted = False,
    audit: Annotated[Path, typer.Option("--audit", metavar="FILE", help="Where runs are recorded.")] = Path(
        "psi-audit.jsonl"
    ),
    runs: Annotated[
        int, typer.Option("--runs", metavar="N", help="How many runs with the same owners a day are allowed.")
    ] = 10,
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", help="Processes that compute. Default: one a core.")
    ] = None,
    wait_s: Wait = 300.0,
) -> None:
    """Find out whom several owners share, and write your rows of them in one order; see docs/psi.md.

    Every owner runs it at the same time. A run that was killed goes on when all start it again.
    With --find, two owners look a small table up in a large one, or learn how many they share, or a sum over them.

    Example:  hansa psi --me bank --parties parties.toml --data bank.csv --key id --out aligned.csv
    """
    from hansa.app.psi import Wish, psi

    wish = Wish(
        find=find, protocol=protocol, coordinator=coordinator, learns=learns, cap=cap, bucket_keys=bucket_keys,
        prepared=prepared, epsilon=epsilon, delta=delta, values=values, least=least,
    )  # fmt: skip
    psi(
        wish, me=me, parties=parties, identity=identity, data=data, key=key, out=out,
        normalise=_steps(normalise), duplicates=duplicates, yes=yes, audit=audit,
        runs=runs, workers=workers, wait_s=wait_s,
    )  # fmt: skip


@commands.command(rich_help_panel=PANEL)
def answer(
    model: Annotated[
        Path,
        typer.Option("--model", metavar="FILE", help="Your part: of `save_part`, or a .py that defines part(mesh)."),
    ],
    asker: Annotated[str, typer.Option("--asker", metavar="NAME", help="Who asks, and alone learns the answers.")],
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FILE.CSV", help="Your people; none at a party without columns.")
    ] = None,
    key: Annotated[
        str, typer.Option("--key", metavar="COLUMN", help="The column of the ids that requests name.")
    ] = "id",
    me: Me = None,
    parties: PartiesFile = Path("parties.toml"),
    identity: IdentityFile = None,
    normalise: Annotated[
        str, typer.Option("--normalise", metavar="STEPS", help="Of ids: strip,nfkc,casefold,digits,alnum, or none.")
    ] = "strip,nfkc,casefold",
    default: Annotated[
        str | None, typer.Option("--default", metavar="JSON", help="Asker: the answer where an owner is missing.")
    ] = None,
    ids: Annotated[
        str | None, typer.Option("--ids", metavar="FILE", help="Asker: about whom, an id a line; - reads stdin.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.CSV", help="Asker: where the answers of --ids go.")
    ] = None,
    serve: Annotated[
        str | None, typer.Option("--serve", metavar="HOST:PORT", help="Asker: take requests by HTTP.")
    ] = None,
    most: Annotated[
        int | None, typer.Option("--most", metavar="N", help="Others: people of one request. Default: 10,000.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Others: end when the asker is done.")] = False,
    yes: Accepted = False,
    wait_s: Wait = 60.0,
) -> None:
    """Predict together, as a service of each owner: the asker names people, and alone learns the answers.

    Example:  hansa answer --me shop --model shop-part.json --data shop.csv --asker bank
    """
    from hansa.app.answer import Wish, answer

    wish = Wish(asker=asker, default=default, ids=ids, out=out, serve=serve, most=most, once=once)
    answer(
        wish, me=me, parties=parties, identity=identity, model=model, data=data, key=key,
        normalise=_steps(normalise), yes=yes, wait_s=wait_s,
    )  # fmt: skip
