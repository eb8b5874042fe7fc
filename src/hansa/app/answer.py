"""`hansa answer`: predicting together as a service, one command at each owner of a model's parts.

    hansa answer --me shop … --asker bank                         serves, for as long as it runs
    hansa answer --me bank … --asker bank --default 0.2 --ids FILE     asks about these people
    hansa answer --me bank … --asker bank --default 0.2 --serve HOST:PORT

    POST /predict   {"ids": ["4711", "4712"]}  →  {"answers": [{"id": "4711", "value": 0.31, "joint": true, …}, …]}

The parts are files of `hansa.vertical.save_part`, or a Python file whose `part(mesh)` gives this owner's side. Answers
reach the asker alone; a person whom an owner does not know, or all while one is lost, are answered by the default.
"""

import csv
import io
import json
import logging
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hansa.app.party import check_known, identity_of
from hansa.app.psi import asked
from hansa.app.terminal import emit, hint, say, settings
from hansa.core.errors import ConfigError, DataError, HansaError, MissingExtra, Unreachable
from hansa.core.runtime import Mesh
from hansa.crypto.private_file import write_atomically
from hansa.runtimes.jobfile import explained, load_module
from hansa.runtimes.mesh import Parties, TlsMesh
from hansa.vertical.predict import Answer, Asker, People, Predict, learns, serve
from hansa.vertical.psi import Keys
from hansa.vertical.psi.files import CsvTable, typed
from hansa.vertical.psi.terms import ask
from hansa.vertical.saved import load_part
from hansa.vertical.table import AlignedTable

if TYPE_CHECKING:
    from starlette.applications import Starlette

_SESSION = sha256(b"hansa answer").digest()
_IDLE_S = 30 * 86400.0  # an owner may go unasked for so long
MAX_REQUEST_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What only the asker says, and what only those who serve say.

    Args:
      asker: who alone may ask, and learns the answers.
      default: the asker's: JSON text of what is answered where there is no joint prediction.
      ids: the asker's: a file of ids, one a line; `-` is the standard input.
      out: the asker's: where answers go as CSV.
      serve: the asker's: HOST:PORT for requests by HTTP.
      most: of those who serve: people of one request.
      once: of those who serve: ends when the asker has asked all it wanted.
    """

    asker: str
    default: str | None = None
    ids: str | None = None
    out: Path | None = None
    serve: str | None = None
    most: int | None = None
    once: bool = False

    def check(self, me: str) -> None:
        """ConfigError unless the options are those of this party's part."""
        if me != self.asker:
            given = {"--default": self.default, "--ids": self.ids, "--out": self.out, "--serve": self.serve}
            wrong = [option for option, value in given.items() if value is not None]
            if wrong:
                raise ConfigError(f"{', '.join(wrong)} belong to '{self.asker}', who asks: '{me}' leaves them out.")
            return
        if (self.ids is None) == (self.serve is None):
            raise ConfigError("give exactly one of --ids FILE (ask about these) and --serve HOST:PORT (by HTTP).")
        if self.default is None:
            raise ConfigError("say what is answered where an owner is missing: --default VALUE, as --default null.")
        if self.most is not None or self.once:
            raise ConfigError("--most and --once belong to those who serve: the asker leaves them out.")


def answer(
    wish: Wish, *, me: str | None, parties: Path, identity: Path | None, model: Path, data: Path | None, key: str,
    normalise: Sequence[str], yes: bool, wait_s: float,
) -> None:  # fmt: skip
    """Runs one owner's side."""
    (file, name), known = identity_of(me, identity), Parties.read(parties)
    for one in (name, wish.asker):
        check_known(one, known, parties)
    wish.check(name)
    keys = Keys(key, normalise)
    people = People() if data is None else people_of(data, keys, name)
    side = side_of(model)
    ask("Prediction together, as a service", learns(wish.asker, known.names), yes or asked)
    logging.getLogger("hansa.vertical.predict").setLevel(logging.ERROR)  # a loss is said in the answers
    if name != wish.asker:
        _serve(partial(TlsMesh, file, known, _SESSION, wait_s=wait_s, stall_s=_IDLE_S), side, people, wish)
        return

    def connect() -> tuple[Mesh, Predict]:
        mesh = TlsMesh(file, known, _SESSION, wait_s=wait_s)
        return mesh, side(mesh)

    asker = Asker(connect, people, default=_default(wish.default))
    try:
        if wish.serve is not None:
            from hansa.app.predict import run_service

            run_service(service(asker, keys), wish.serve, asker=name)
        else:
            assert wish.ids is not None
            _write(_asked(asker, _ids(wish.ids), keys), wish.out)
    finally:
        asker.close()


def people_of(path: Path, keys: Keys, owner: str) -> People:
    """One owner's people out of its CSV file: ids are the normalised key, features all other columns.

    Raises:
      ConfigError: there is no such column.
      DataError: ids are missing, or occur twice.
    """
    table = CsvTable.open(path)
    (key,) = keys.columns
    if key not in table.columns:
        raise ConfigError(f"{path} has no column '{key}' of ids: it has {', '.join(table.columns)}; see --key.")
    pieces = list(table.keys(table.columns))
    columns = {name: [cell for piece in pieces for cell in piece[name]] for name in table.columns}
    ids = keys.normal(columns.pop(key))
    if not all(ids):
        raise DataError(f"the column '{key}' of {path} is empty in row {ids.index('')} (counted from 0).")
    return People(ids=ids, table=AlignedTable(owner, {name: typed(cells) for name, cells in columns.items()}))


def side_of(model: Path) -> Callable[[Mesh], Predict]:
    """How this owner predicts: by a saved part, or by the `part(mesh)` of a Python file."""
    if model.suffix != ".py":
        return load_part(model).over
    made = getattr(load_module(model), "part", None)
    if not callable(made):
        raise ConfigError(f"{model} defines no `part`: def part(mesh): ... gives the function that predicts a table.")

    def side(mesh: Mesh) -> Predict:
        with explained(model.absolute()):
            given: Predict = made(mesh)
        return given

    return side


def _serve(link: Callable[[], TlsMesh], side: Callable[[Mesh], Predict], people: People, wish: Wish) -> None:
    """Answers one connection of the asker after another."""
    most = {} if wish.most is None else {"most": wish.most}
    while True:
        try:
            with link() as mesh:
                emit("serving", me=mesh.me, asker=wish.asker)
                hint(f"'{wish.asker}' is here, and may ask")
                count = serve(mesh, side(mesh), people, wish.asker, **most)
        except (Unreachable, DataError) as error:  # one person's row is no reason to leave all others unanswered
            hint(f"{error} Waiting for all owners again.")
            continue
        emit("served", asker=wish.asker, people=count)
        say(f"{count:,} people were predicted for '{wish.asker}', who is done")
        if wish.once:
            return


def _asked(asker: Asker, ids: Sequence[str], keys: Keys) -> list[Answer]:
    """Answers under the ids as they were asked."""
    normal = keys.normal(ids)
    return [Answer(given, found.value, found.reason) for given, found in zip(ids, asker.ask(normal), strict=True)]


def _default(text: str | None) -> Any:
    try:
        return json.loads(text or "null")
    except ValueError:
        raise ConfigError(f'--default {text} is no JSON: give a number, null or "text".') from None


def _ids(source: str) -> list[str]:
    try:
        lines = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--ids {source} cannot be read ({error}): give a text file with an id on each line."
        ) from None
    return [line for line in lines.splitlines() if line.strip()]


def _write(answers: Sequence[Answer], out: Path | None) -> None:
    joint = sum(each.joint for each in answers)
    if out is None and settings.json:
        for each in answers:
            emit("answer", **_row(each))
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "value", "joint", "reason"])
    writer.writerows([each.id, json.dumps(_value(each)), each.joint, each.reason] for each in answers)
    if out is None:
        sys.stdout.write(text.getvalue())
    else:
        try:
            write_atomically(out, text.getvalue().encode(), mode=0o600)
        except HansaError as error:
            raise ConfigError(f"--out: {error}") from None
    emit("answered", people=len(answers), joint=joint, out=str(out))
    hint(f"{joint:,} of {len(answers):,} people answered by all owners together, the others by the default")


def _value(each: Answer) -> Any:
    return each.value.tolist() if isinstance(each.value, np.generic | np.ndarray) else each.value


def _row(each: Answer) -> dict[str, Any]:
    return {"id": each.id, "value": _value(each), "joint": each.joint, "reason": each.reason}


# -- by HTTP


def service(asker: Asker, keys: Keys) -> "Starlette":
    """The HTTP application at the asker; see the top of this page. One request is answered at a time."""
    try:
        from starlette.applications import Starlette
        from starlette.concurrency import run_in_threadpool
        from starlette.requests import Request
        from starlette.responses import JSONResponse
        from starlette.routing import Route
    except ImportError as error:
        raise MissingExtra("hansa answer --serve", error.name or "starlette", "serve") from None
    from hansa.app.predict import posted

    turn = threading.Lock()

    def answers(ids: list[str]) -> list[dict[str, Any]]:
        with turn:
            return [_row(each) for each in _asked(asker, ids, keys)]

    async def predict(request: Request) -> JSONResponse:
        body = await posted(request, MAX_REQUEST_BYTES)
        if body is None:
            return JSONResponse({"error": f"the request is larger than {MAX_REQUEST_BYTES} bytes: ask less."}, 413)
        try:
            return JSONResponse({"answers": await run_in_threadpool(answers, _named(body))})
        except HansaError as error:
            return JSONResponse({"error": str(error)}, 400)

    async def health(request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    return Starlette(routes=[Route("/predict", predict, methods=["POST"]), Route("/health", health)])


def _named(body: bytes) -> list[str]:
    try:
        ids = json.loads(body)["ids"]
    except (ValueError, KeyError, TypeError, RecursionError):
        ids = None
    if not isinstance(ids, list) or not all(isinstance(each, str) for each in ids):
        raise DataError('send JSON like {"ids": ["4711", "4712"]}.')
    return ids
