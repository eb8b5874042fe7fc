"""`report.html`: one file that needs nothing else, no network, no script: what was trained, by whom, and what was sent.

Curves are drawn here as SVG, so that the page can be mailed, printed and opened in ten years. Colours carry no meaning
alone: every line and bar also has its name in words.
"""

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hansa.app.demo import cases
from hansa.app.demo.arms import ARMS, CAVEATS, POOLED, TOGETHER, Table, spread, wins
from hansa.app.demo.checks import Check
from hansa.core.train import Record

COLOURS = {
    "hospital-a": "#b45309",
    "hospital-b": "#0f766e",
    "hospital-c": "#7c3aed",
    TOGETHER: "#1d4ed8",
    POOLED: "#64748b",
}
WORDS = {
    **{name: f"{name} alone" for name in cases.SHARES},
    TOGETHER: "together, federated",
    POOLED: "all cases in one pool",
}


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that the report tells.

    Args:
      records: of the deployed run, round by round.
      holdings: hospital to its numbers of (benign, malignant) cases; `test` is the server's.
      raw_bytes: what the hospitals' files would have weighed, had they been sent.
      table: scores by seed and arm; the first seed is the deployed one.
      checks: what was tried on the running federation.
      run, job_hash, signer: which run this was.
      parameters, same_bits: numbers in the model, and whether the local runtime gave the same bits.
      training_s, total_s: from submission to the last round, and from beginning to end.
    """

    records: Sequence[Record]
    holdings: Mapping[str, tuple[int, int]]
    raw_bytes: int
    table: Table
    checks: Sequence[Check]
    run: str
    job_hash: str
    signer: str
    parameters: int
    same_bits: bool
    training_s: float
    total_s: float


def page(findings: Findings) -> str:
    """The whole HTML page."""
    sections = [
        _head(findings),
        _section("What they reached", _reached(findings)),
        _section("Round by round", _curves(findings)),
        _section("Who held what", _held(findings)),
        _section("What was sent", _sent(findings)),
        _section("What was tried, and seen", _checked(findings)),
        _section("All five seeds", _seeds(findings)),
    ]
    title = "Three hospitals, one model"
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{style}</style>\n</head>\n<body>\n<main>\n" + "\n".join(sections) + "\n</main>\n</body>\n</html>\n"
    )


# ── sections ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _head(f: Findings) -> str:
    alone = {arm: spread(f.table, arm)[0] for arm in cases.SHARES}
    worst, best = min(alone.values()), max(alone.values())
    cards = [
        (
            _percent(worst) if worst == best else f"{_percent(worst)} – {_percent(best)}",
            "each hospital alone",
            "#b45309",
        ),
        (_percent(spread(f.table, TOGETHER)[0]), "together, no case shared", COLOURS[TOGETHER]),
        (_percent(spread(f.table, POOLED)[0]), "had all cases been pooled", COLOURS[POOLED]),
    ]
    shown = "".join(
        f'<div class="card" style="border-color:{colour}"><b>{number}</b><span>{words}</span></div>'
        for number, words, colour in cards
    )
    bits = "<b>equal to the last bit</b>" if f.same_bits else "<b>NOT equal</b>, which is a fault to report"
    return (
        "<header><h1>Three hospitals, one model</h1>"
        "<p>A server and three hospitals, each a process of its own, trained one model to tell benign from malignant "
        "breast tumours. They spoke over mutual TLS, and no hospital’s cases left it.</p>"
        f'<div class="cards">{shown}</div>'
        f'<p class="note">Share of test cases classified correctly, median of {len(f.table)} seeds; ranges are below. '
        f"Run {_text(f.run)}, {len(f.records)} rounds, {f.training_s:.1f} s of training. "
        f"The seed that was deployed was also trained in one process: the {f.parameters} parameters are "
        f"{bits}.</p></header>"
    )


def _reached(f: Findings) -> str:
    rows = [(WORDS[arm], COLOURS[arm], [scores[arm].accuracy for scores in f.table.values()]) for arm in ARMS]
    against = "; ".join(
        f"{WORDS[arm]}: better in {more}, equal in {equal}, worse in {fewer}"
        for arm in cases.SHARES
        for more, equal, fewer in [wins(f.table, arm)]
    )
    return (
        "<p>One dot is one seed, the bar is the median. To the right is better.</p>"
        + _strip(rows, "accuracy on the test set")
        + f"<p><b>Together against each hospital alone</b>, seed by seed, of {len(f.table)}. {against}.</p>"
        + "<p>What is not comparable:</p><ul>"
        + "".join(f"<li>{caveat}</li>" for caveat in CAVEATS)
        + "</ul>"
    )


def _curves(f: Findings) -> str:
    first = next(iter(f.table.values()))
    rounds = [record.round + 1 for record in f.records if record.central]
    level = {POOLED: COLOURS[POOLED], **{name: COLOURS[name] for name in cases.SHARES}}
    charts = []
    for measure, words in (("loss", "log loss on the test set"), ("accuracy", "accuracy on the test set")):
        ours = [record.central[measure] for record in f.records if record.central]
        lines = [(WORDS[arm], colour, getattr(first[arm], measure)) for arm, colour in level.items()]
        charts.append(f"<figure><figcaption>{words}</figcaption>{_chart(rounds, ours, lines)}</figure>")
    keys = "".join(_key(colour, WORDS[arm], dashed=True) for arm, colour in level.items())
    return (
        "<p>The deployed run, measured by the server after each round on cases that no hospital holds. Dashed: where "
        "the other runs of this seed ended.</p>"
        f'<div class="legend">{_key(COLOURS[TOGETHER], WORDS[TOGETHER])}{keys}</div>'
        f'<div class="pair">{"".join(charts)}</div>'
    )


def _held(f: Findings) -> str:
    most = max(sum(counts) for counts in f.holdings.values())
    bars = []
    for name, (benign, malignant) in f.holdings.items():
        share = malignant / max(1, benign + malignant)
        whole = 100 / most
        bars.append(
            f'<tr><th>{_text(name)}</th><td class="bar"><i style="width:{benign * whole:.1f}%;background:#94a3b8"></i>'
            f'<i style="width:{malignant * whole:.1f}%;background:#be123c"></i></td>'
            f"<td>{benign + malignant}</td><td>{malignant}</td><td>{share:.0%}</td></tr>"
        )
    legend = _key("#94a3b8", "benign") + _key("#be123c", "malignant")
    return (
        f"<p>The rule, fixed before anything was trained: {cases.RULE} The server holds the test set and no other "
        "case. Features are brought to one scale by the ranges that the data set’s description publishes.</p>"
        f'<div class="legend">{legend}</div><table class="bars"><tr><th></th><th></th><th>cases</th>'
        f"<th>malignant</th><th>share</th></tr>{''.join(bars)}</table>"
        '<p class="note">Breast Cancer Wisconsin (Diagnostic), Street, Wolberg and Mangasarian 1993; 569 cases, 30 '
        "measures of cell nuclei; carried by scikit-learn.</p>"
    )


def _sent(f: Findings) -> str:
    up, down = sum(r.up_bytes for r in f.records), sum(r.down_bytes for r in f.records)
    rounds = max(1, len(f.records))
    facts = [
        ("up, all hospitals, a round", _size(up / rounds)),
        ("up, all rounds", _size(up)),
        ("down, all hospitals, a round", _size(down / rounds)),
        ("down, all rounds", _size(down)),
        ("the hospitals’ files, which stayed where they are", _size(f.raw_bytes)),
        ("numbers in one model", str(f.parameters)),
    ]
    listed = "".join(f"<tr><th>{words}</th><td>{number}</td></tr>" for words, number in facts)
    return (
        "<p>In each round a hospital is sent the model, trains on its own cases, and sends back a <b>difference</b>: "
        "its parameters after training minus those it was sent, with the number of its cases as weight and the loss "
        "and accuracy of its training. The differences are added up in one fixed order and deleted. The server could "
        "read a single difference while its round lasts: a plain sum does not hide it, a secure sum would.</p>"
        f'<table class="facts">{listed}</table>'
        '<p class="note">Bytes are those of the messages as the server counted them. With small data and many rounds '
        "what is gained is that cases stay where they are, not bandwidth.</p>"
    )


def _checked(f: Findings) -> str:
    rows = "".join(
        f'<tr class="{"good" if check.passed else "bad"}"><td>{"✓" if check.passed else "✗"}</td>'
        f"<td>{_text(check.what)}</td><td>{_text(check.seen)}</td></tr>"
        for check in f.checks
    )
    return (
        "<p>Each line was tried on the running federation, and says what came back.</p>"
        f'<table class="checks">{rows}</table>'
        f'<p class="note">The job: {_text(f.job_hash)}, signed by {_text(f.signer)}. Each hospital ran it because its '
        f"own policy says <code>--allow signer:{_text(f.signer)}</code>.</p>"
    )


def _seeds(f: Findings) -> str:
    head = "".join(f'<th><i class="dot" style="background:{COLOURS[arm]}"></i>{WORDS[arm]}</th>' for arm in ARMS)
    body = "".join(
        f"<tr><th>seed {seed}{' (deployed)' if place == 0 else ''}</th>"
        + "".join(f"<td>{_percent(scores[arm].accuracy)}<small>{scores[arm].loss:.3f}</small></td>" for arm in ARMS)
        + "</tr>"
        for place, (seed, scores) in enumerate(f.table.items())
    )
    feet = ""
    for place, words in ((0, "median"), (1, "least"), (2, "greatest")):
        cells = "".join(
            f"<td>{_percent(spread(f.table, arm)[place])}<small>{spread(f.table, arm, 'loss')[place]:.3f}</small></td>"
            for arm in ARMS
        )
        feet += f'<tr class="foot"><th>{words}</th>{cells}</tr>'
    return (
        "<p>Accuracy, and log loss in small print (less is better). The first seed is that of the federation above, "
        "all were trained in one process, which gives the same bits.</p>"
        f'<div class="wide"><table class="seeds"><tr><th></th>{head}</tr>{body}{feet}</table></div>'
    )


# ── drawing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _chart(xs: Sequence[int], ours: Sequence[float], levels: Sequence[tuple[str, str, float]]) -> str:
    """One line over the rounds, and dashed levels to compare it with."""
    if not xs:
        return "<p>no round was measured</p>"
    wide, high, left, foot = 460, 260, 46, 30
    low, top, step = _axis([*ours, *(level for _, _, level in levels)])
    x = _scale(xs[0], max(xs[-1], xs[0] + 1), left, wide - 10)
    y = _scale(low, top, high - foot, 10)
    out = [f'<svg viewBox="0 0 {wide} {high}" role="img">']
    for i in range(round((top - low) / step) + 1):
        tick = low + i * step
        out.append(f'<line class="grid" x1="{left}" x2="{wide - 10}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        out.append(f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.{_digits(step)}f}</text>')
    for tick in sorted({xs[0], *range(5, xs[-1] + 1, 5 if xs[-1] <= 40 else 10)}):
        out.append(f'<text x="{x(tick):.1f}" y="{high - foot + 16}" text-anchor="middle">{tick}</text>')
    out.append(f'<text x="{(wide + left) / 2:.0f}" y="{high - 1}" text-anchor="middle">round</text>')
    for words, colour, level in levels:
        out.append(
            f'<line x1="{left}" x2="{wide - 10}" y1="{y(level):.1f}" y2="{y(level):.1f}" stroke="{colour}" '
            f'stroke-width="1.5" stroke-dasharray="6 4"><title>{words}: {level:.3f}</title></line>'
        )
    points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(xs, ours, strict=True))
    out.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[TOGETHER]}" stroke-width="2.5"/>')
    out.append(f'<circle cx="{x(xs[-1]):.1f}" cy="{y(ours[-1]):.1f}" r="4" fill="{COLOURS[TOGETHER]}"/>')
    return "".join(out) + "</svg>"


def _strip(rows: Sequence[tuple[str, str, Sequence[float]]], label: str) -> str:
    """One row of dots for each arm, with its median."""
    wide, left, row = 940, 190, 34
    low, top, step = _axis([value for _, _, values in rows for value in values])
    high = row * len(rows) + 40
    x = _scale(low, top, left, wide - 70)
    out = [f'<svg viewBox="0 0 {wide} {high}" role="img">']
    for i in range(round((top - low) / step) + 1):
        tick = low + i * step
        out.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="4" y2="{high - 36}"/>')
        out.append(f'<text x="{x(tick):.1f}" y="{high - 20}" text-anchor="middle">{tick:.0%}</text>')
    out.append(f'<text x="{(left + wide - 70) / 2:.0f}" y="{high - 3}" text-anchor="middle">{label}</text>')
    for place, (words, colour, values) in enumerate(rows):
        middle = row * place + row / 2 + 2
        median = sorted(values)[len(values) // 2]
        out.append(f'<text x="{left - 14}" y="{middle + 4:.1f}" text-anchor="end" class="name">{words}</text>')
        out.append(
            f'<line x1="{x(min(values)):.1f}" x2="{x(max(values)):.1f}" y1="{middle}" y2="{middle}" '
            f'stroke="{colour}" stroke-width="2" opacity=".35"/>'
        )
        seen: dict[float, int] = {}
        for value in values:
            above = seen[value] = seen.get(value, -1) + 1  # equal dots stand on one another
            out.append(
                f'<circle cx="{x(value):.1f}" cy="{middle - 7 * above:.1f}" r="4.5" fill="{colour}" opacity=".6"/>'
            )
        out.append(
            f'<rect x="{x(median) - 2:.1f}" y="{middle - 11}" width="4" height="22" rx="2" fill="{colour}"/>'
            f'<text x="{wide - 60}" y="{middle + 4:.1f}" class="name" style="fill:{colour}">{_percent(median)}</text>'
        )
    return "".join(out) + "</svg>"


def _scale(low: float, top: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (top - low) * (end - start)


def _axis(values: Sequence[float]) -> tuple[float, float, float]:
    """Round ends that hold all values, and the step between ticks."""
    low, top = min(values), max(values)
    span = max(top - low, 1e-3)
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= span / 6)
    return math.floor(low / step + 1e-9) * step, math.ceil(top / step - 1e-9) * step, step


def _digits(step: float) -> int:
    return max(0, -math.floor(math.log10(step) + 1e-9))


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>"


def _key(colour: str, words: str, dashed: bool = False) -> str:
    stroke = ' stroke-dasharray="5 3"' if dashed else ""
    line = f'<line x1="0" x2="22" y1="4" y2="4" stroke="{colour}" stroke-width="3"{stroke}/>'
    return f'<span><svg class="key" viewBox="0 0 22 8">{line}</svg>{words}</span>'


def _text(text: str) -> str:
    return html.escape(str(text))


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _size(size_bytes: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size_bytes < 1000 or unit == "MB":
            return f"{size_bytes:.0f} bytes" if unit == "bytes" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    raise AssertionError
