"""`hansa predict`: a trained model applied to data, or served over HTTP.

    POST /predict   {"x": [[5.1, 3.5], …]}  →  {"predictions": [2, …], "scores": [[0.1, 0.2, 0.7], …]}
    GET  /health    {"status": "ok", "job": "…", "round": "40"}

A model's scores become predictions as its kind demands: the best of several classes, or the number itself. A request
is data and nothing else: too large, no JSON or of the wrong shape, it ends in a sentence and a 4xx code.
"""

import csv
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hansa.app.jobs import read_settings
from hansa.app.terminal import emit, hint, number, say, settings
from hansa.core.checkpoint import open_bytes
from hansa.core.data import Dataset
from hansa.core.errors import ConfigError, CorruptFile, DataError, HansaError, MissingExtra, NotFound
from hansa.core.job import Job
from hansa.core.model import Role, value
from hansa.core.tensors import Tensors, mismatch
from hansa.runtimes.jobfile import load_job

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request

MAX_REQUEST_BYTES = 16 << 20
BATCH = 4096  # examples at a time


@dataclass(frozen=True)
class Predictor:
    """A job's model with trained tensors: `scores` of a data set, and `predictions` made from them."""

    job: Job
    params: Tensors
    metadata: dict[str, str] = field(default_factory=dict)
    _apply: Callable[[np.ndarray], np.ndarray] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_apply", _applied(self.job, self.params))

    @classmethod
    def load(cls, job: Job, path: Path) -> "Predictor":
        """A model file of this job.

        Raises:
          NotFound: there is no such file.
          CorruptFile: it is no safetensors file.
          TensorMismatch: its tensors are not those of the job's model.
        """
        try:
            given, metadata = open_bytes(path.read_bytes())
        except FileNotFoundError:
            raise NotFound(f"there is no model file '{path}': fetch one with `hansa model RUN --out {path}`.") from None
        except OSError as error:
            raise ConfigError(f"--model {path} cannot be read ({error.strerror}): check the path.") from None
        except CorruptFile as error:
            raise CorruptFile(f"{path} is no model file ({error}) Give what `hansa model` or --out wrote.") from None
        return cls(job, completed(job, given, str(path)), metadata)

    def scores(self, x: np.ndarray) -> np.ndarray:
        """What the model gives for inputs of shape (examples, ...): shape (examples, outputs), or (examples,).

        Raises:
          DataError: the model cannot take inputs of this shape.
        """
        try:
            pieces = [np.asarray(self._apply(x[at : at + BATCH])) for at in range(0, len(x), BATCH)]
        except HansaError:
            raise
        except Exception as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(f"the model cannot take inputs of shape {list(x.shape)}: {first}.") from error
        if not pieces:
            raise DataError("there are no examples to predict: give at least one.")
        return np.concatenate(pieces)

    @staticmethod
    def predictions(scores: np.ndarray) -> np.ndarray:
        """The class with the greatest score where there are several outputs, else the output itself."""
        if scores.ndim > 1 and scores.shape[-1] > 1:
            return np.asarray(scores.argmax(axis=-1))
        return scores.reshape(len(scores), -1)[:, 0] if scores.ndim > 1 else scores


def completed(job: Job, given: Tensors, source: str) -> Tensors:
    """A file's tensors with the frozen and private ones of the job, which a run's checkpoint does not hold."""
    shapes = job.model.shapes()
    missing = [name for name in shapes if name not in given]
    if missing and all(job.model.role(name) in (Role.FROZEN, Role.PRIVATE) for name in missing):
        start = job.model.init(job.seed)
        given = job.model.named(start, Role.FROZEN, Role.PRIVATE).updated(given)
    mismatch(shapes, given.shapes, f"the model file {source}", dtypes=True)
    return given


def _applied(job: Job, params: Tensors) -> Callable[[np.ndarray], np.ndarray]:
    """Inputs to scores, by what the job's model offers."""
    model: Any = job.model
    if callable(getattr(model, "predict", None)):
        return lambda x: np.asarray(model.predict(params, Dataset(x=x)))
    if callable(getattr(model, "forward", None)):  # those by hand
        arrays = {name: np.asarray(params[name]) for name in params}
        first = next(iter(arrays.values())).dtype
        return lambda x: np.asarray(model.forward(arrays, np.asarray(x, first).reshape(len(x), -1))[0])
    finished = model.finish(params)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(finished, torch.nn.Module):
        return lambda x: _through_torch(torch, finished, x)
    for name in ("predict_proba", "predict"):
        if callable(getattr(finished, name, None)):
            return lambda x: np.asarray(getattr(finished, name)(x))
    if callable(finished):
        return lambda x: np.asarray(finished(x))
    raise ConfigError(
        f"{type(model).__name__} cannot predict: give it a method predict(params, data), or let finish(params) return "
        "something with `predict`."
    )


def _through_torch(torch: Any, module: Any, x: np.ndarray) -> np.ndarray:
    """A forward pass; floats in the module's own type."""
    dtype = next((parameter.dtype for parameter in module.parameters()), torch.float32)
    inputs = torch.from_numpy(np.ascontiguousarray(x))
    with torch.inference_mode():
        return np.asarray(module(inputs.to(dtype) if inputs.is_floating_point() else inputs).numpy())


# -- the command


def predict(
    job: Path,
    model: Path,
    data: str | None,
    out: Path | None,
    serve: str | None,
    pairs: Sequence[str],
    config: Path | None,
) -> None:
    """Runs `hansa predict`; arguments are its options."""
    if (data is None) == (serve is None):
        raise ConfigError(
            "give exactly one of --data SPEC (predict for these) and --serve HOST:PORT (answer requests)."
        )
    loaded = load_job(job, read_settings(pairs, config))
    predictor = Predictor.load(loaded, model)
    if serve is not None:
        _serve(predictor, serve)
        return
    from hansa.data.files import load as load_data

    assert data is not None
    examples = load_data(data)
    if "x" not in examples:
        raise DataError(f"--data {data} has no column 'x': return a hansa.Dataset(x=...), with y=... if it is known.")
    scores = predictor.scores(np.asarray(examples["x"]))
    predictions = predictor.predictions(scores)
    metrics = _measured(predictor, examples)
    _write(predictions, scores, out)
    emit("predicted", examples=len(predictions), out=str(out) if out else None, metrics=metrics)
    if out is not None:
        say(f"{len(predictions)} predictions written to {out}")
    if metrics:
        said = ", ".join(f"{name} {number(amount)}" for name, amount in metrics.items())
        (say if out is not None else hint)(f"against y: {said}")


def _measured(predictor: Predictor, examples: Any) -> dict[str, float]:
    """The model's own metrics, where the data has targets."""
    if "y" not in examples:
        return {}
    return value(predictor.job.model.evaluate(predictor.params, examples))


def _write(predictions: np.ndarray, scores: np.ndarray, out: Path | None) -> None:
    """CSV into a file or onto stdout; JSON lines onto stdout for machines."""
    wide = scores.ndim == 2 and scores.shape[1] > 1
    names = [f"score_{i}" for i in range(scores.shape[1])] if wide else []
    if out is None and settings.json:
        for i, one in enumerate(predictions.tolist()):
            emit("prediction", row=i, prediction=one, **({"scores": scores[i].tolist()} if wide else {}))
        return
    rows = ([one, *(scores[i].tolist() if wide else [])] for i, one in enumerate(predictions.tolist()))
    if out is None:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["prediction", *names])
        writer.writerows(rows)
        return
    beside = out.with_name(out.name + ".partial")
    try:
        with beside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["prediction", *names])
            writer.writerows(rows)
        beside.replace(out)
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be written ({error.strerror}): choose another place.") from None


# -- the service


def service(predictor: Predictor) -> "Starlette":
    """The HTTP application; see the top of this page."""
    try:
        from starlette.applications import Starlette
        from starlette.concurrency import run_in_threadpool
        from starlette.requests import Request
        from starlette.responses import JSONResponse
        from starlette.routing import Route
    except ImportError as error:
        raise MissingExtra("hansa predict --serve", error.name or "starlette", "serve") from None

    async def answer(request: Request) -> JSONResponse:
        body = await posted(request, MAX_REQUEST_BYTES)
        if body is None:
            said = f"the request is larger than {MAX_REQUEST_BYTES} bytes: send fewer examples."
            return JSONResponse({"error": said}, 413)
        try:
            x = _inputs(body)
            if len(x) > BATCH or x.nbytes > 1 << 20:
                scores = await run_in_threadpool(predictor.scores, x)
            else:
                scores = predictor.scores(x)
        except HansaError as error:
            return JSONResponse({"error": str(error)}, 400)
        wide = scores.ndim > 1 and scores.shape[-1] > 1
        found = {"predictions": _finite(predictor.predictions(scores))}
        return JSONResponse({**found, "scores": _finite(scores)} if wide else found)

    async def health(request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok", "job": predictor.job.name, "round": predictor.metadata.get("round", "")})

    return Starlette(routes=[Route("/predict", answer, methods=["POST"]), Route("/health", health)])


def _inputs(body: bytes) -> np.ndarray:
    """The examples of a request; DataError says what is wrong with it."""
    try:
        given = json.loads(body, parse_constant=_no_constant)
        rows = given["x"]
        if not isinstance(rows, list) or not rows:
            raise TypeError
        x = np.asarray(rows)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DataError(
            'send JSON like {"x": [[5.1, 3.5], [4.9, 3.0]]}: one list of numbers for each example.'
        ) from None
    if x.dtype.kind not in "iuf" or x.ndim < 2:
        raise DataError(
            f"'x' must be a list of examples, each a list of numbers, all of one length: got shape {list(x.shape)}."
        )
    return x.astype(np.float32) if x.dtype.kind == "f" else x


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _finite(values: np.ndarray) -> Any:
    """Lists for JSON, which has no NaN: null instead."""
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return values.tolist()
    return [_finite(row) if row.ndim else float(row) if np.isfinite(row) else None for row in values]


def _serve(predictor: Predictor, address: str) -> None:
    """Answers requests until it is interrupted."""
    run_service(service(predictor), address, job=predictor.job.name)


async def posted(request: "Request", most: int) -> bytes | None:
    """The body of a request; None, without reading on, if it has more than so many bytes."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            return None
    return bytes(body)


def run_service(application: "Starlette", address: str, **facts: str) -> None:
    """Runs an HTTP application at HOST:PORT until it is interrupted; `facts` say whose it is."""
    try:
        import uvicorn
    except ImportError:
        raise MissingExtra("hansa predict --serve", "uvicorn", "serve") from None
    from hansa.app.address import is_loopback, split

    host, port = split(address, "--serve")
    if not is_loopback(host):
        hint(
            f"{address} is open to other machines, by plain HTTP and without a password: put a proxy with TLS before it"
        )
    sock = _listening(host, port, address)
    actual = f"{host}:{sock.getsockname()[1]}"
    emit("serving", address=actual, **facts)
    named = ", ".join(f"'{name}'" for name in facts.values())
    say(f"serving {named} at http://{actual}/predict  (Ctrl-C ends it)")
    config = uvicorn.Config(application, log_level="warning", access_log=settings.verbose, lifespan="off")
    try:
        uvicorn.Server(config).run(sockets=[sock])
    except KeyboardInterrupt:
        say("service ended")


def _listening(host: str, port: int, address: str) -> Any:
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        made = socket.create_server((host.strip("[]"), port), family=family)
    except OSError as error:
        raise ConfigError(f"--serve {address}: cannot listen there ({error.strerror}): choose another port.") from None
    # asyncio sets it only on sockets of a named protocol; without it, each small answer waits 40 ms for an ACK.
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made
