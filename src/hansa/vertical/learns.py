"""What each party learns: declared beside the algorithm that makes it so, and said before anything is sent.

Learns = {"bank": ("which of its rows …",), "shop": ()}          roles or names, each with sentences
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

Learns: TypeAlias = Mapping[str, Sequence[str]]


def statement(title: str, learns: Learns) -> str:
    """A declaration as lines of text.

    >>> print(statement("A sum", {"bank": ["the total"], "shop": []}))
    A sum: what each party learns
      bank  the total
      shop  nothing
    """
    width = max(map(len, learns), default=0)
    lines = [f"{title}: what each party learns"]
    for party, sentences in learns.items():
        for at, sentence in enumerate(sentences or ("nothing",)):
            lines.append(f"  {party if not at else '':<{width}}  {sentence}")
    return "\n".join(lines)
