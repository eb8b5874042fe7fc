"""Draws what flows between the players in a round of `job.py`, each in a colour of its own (blue: the model owner).

    python examples/model_owner/flow.py flow.svg      (prints it without a name)

The players, the stages and the number of parameters are read off the job. Solid arrows carry vectors, dashed ones keys
of 32 bytes, sealed for one helper; helpers' keys travel through the server, which cannot open them.
"""

import sys
from pathlib import Path
from xml.sax.saxutils import escape

from job import HELPERS, OWNERS, job

BLUE, HELPER_COLOURS = "#1d4ed8", ("#b45309", "#7c3aed", "#92400e")
OWNER_COLOURS = ("#047857", "#be185d", "#4d7c0f", "#475569", "#0e7490")
WIDTH, ROW, TOP, HIGH = 1060, 64, 150, 42


class Drawing:
    """Boxes and arrows, as the text of an SVG."""

    def __init__(self, height: int) -> None:
        self.height, self.arrows, self.boxes = height, list[str](), list[str]()

    def text(self, x: float, y: float, words: str, colour: str = "#334155", anchor: str = "middle") -> None:
        self.boxes.append(f'<text x="{x:g}" y="{y:g}" fill="{colour}" text-anchor="{anchor}">{escape(words)}</text>')

    def box(self, x: float, y: float, width: float, words: str, colour: str, high: float = HIGH) -> None:
        """A box around (x, y), its left edge's middle; lines of words are told apart by newlines."""
        self.boxes.append(
            f'<rect x="{x:g}" y="{y - high / 2:g}" width="{width:g}" height="{high:g}" rx="7" fill="{colour}"/>'
        )
        lines = words.split("\n")
        for at, line in enumerate(lines):
            self.text(x + width / 2, y + 4 + 15 * (at - (len(lines) - 1) / 2), line, "#ffffff")

    def arrow(self, *points: tuple[float, float], colour: str, dashed: bool = False) -> None:
        """A line through these points, with a head at the last."""
        path = " L".join(f"{x:g} {y:g}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.arrows.append(f'<path d="M{path}" stroke="{colour}"{dash} marker-end="url(#h{colour[1:]})"/>')

    def svg(self) -> str:
        colours = sorted({BLUE, *HELPER_COLOURS, *OWNER_COLOURS})
        heads = "".join(
            f'<marker id="h{colour[1:]}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0 0L8 4L0 8z" fill="{colour}"/></marker>'
            for colour in colours
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height}" font-size="12.5" '
            f'font-family="system-ui, sans-serif"><defs>{heads}</defs>'
            f'<rect width="{WIDTH}" height="{self.height}" rx="10" fill="#f8fafc"/>'
            f'<g fill="none" stroke-width="1.6">{"".join(self.arrows)}</g>{"".join(self.boxes)}</svg>\n'
        )


def picture() -> str:
    """One round, as the text of an SVG."""
    bottom = TOP + ROW * (OWNERS - 1)
    middle, drawing = (TOP + bottom) / 2, Drawing(bottom + 130)
    stages = ", ".join(type(stage).__name__ for stage in job.pipeline.stages)
    parameters = sum(part.count for name, part in job.signal.parts.items() if name == "value")
    masks = " + ".join(f"PRG(k{_sub(at)})" for at in range(len(HELPERS)))

    for at in range(OWNERS):
        y, colour = TOP + ROW * at, OWNER_COLOURS[at % len(OWNER_COLOURS)]
        drawing.box(20, y, 108, f"data-owner-{at}\nown digits", colour)
        drawing.box(150, y, 108, f"{type(job.algorithm).__name__}\nlocal training", colour)
        drawing.box(280, y, 74, "x\nintegers", colour)
        drawing.box(376, y, 150, f"y = x +\n{masks}", colour)
        for left, right in ((128, 150), (258, 280), (354, 376)):
            drawing.arrow((left, y), (right, y), colour=colour)
        drawing.arrow((526, y), (838, middle + 9 * (at - (OWNERS - 1) / 2)), colour=colour)
        for helper in range(len(HELPERS)):
            _, where = _place(helper, bottom)
            end = where + 6 * (at - (OWNERS - 1) / 2)
            drawing.arrow((526, y), (640, end), colour=colour, dashed=True)
    for helper, name in enumerate(HELPERS):
        colour, y = _place(helper, bottom)
        drawing.box(640, y, 130, f"{name}\nΣ PRG(k{_sub(helper)})", colour)
        side = -1 if y < middle else 1
        drawing.arrow((770, y), (838, middle + side * 24), colour=colour)
    drawing.box(838, middle, 108, "Σ y − Σ masks\n= Σ x", BLUE, 74)
    drawing.box(964, middle, 80, "mean,\nnew model", BLUE, 74)
    drawing.arrow((946, middle), (964, middle), colour=BLUE)
    drawing.arrow((1004, middle - 37), (1004, 40), (204, 40), (204, TOP - HIGH / 2), colour=BLUE)
    drawing.text(604, 32, f"the model, {parameters} parameters, to every data owner", BLUE)
    drawing.text(907, middle + 60, "model-owner", BLUE)
    drawing.text(20, drawing.height - 40, f"x: the update after {stages}, under {masks} modulo 2ᵐ", anchor="start")
    drawing.text(
        20, drawing.height - 20, "solid: vectors · dashed: keys, each sealed for one helper · "
        "nobody but its data owner ever has an x; the model owner has their sum", anchor="start",
    )  # fmt: skip
    return drawing.svg()


def _place(helper: int, bottom: int) -> tuple[str, float]:
    """A helper's colour and height: above and below the middle, in turn."""
    high = 90 + 60 * (helper // 2) if helper % 2 == 0 else bottom + 40 - 60 * (helper // 2)
    return HELPER_COLOURS[helper % len(HELPER_COLOURS)], high


def _sub(number: int) -> str:
    return "₁₂₃₄₅₆₇₈₉"[number]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(picture(), encoding="utf-8")
    else:
        print(picture())
