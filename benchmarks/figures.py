"""One line for each figure: name, value, unit, and what it is held against in the same run."""


def figure(name: str, value: float, unit: str, against: str = "") -> None:
    """Prints it at once, so that a run that is ended has said what it knew."""
    print(f"{name:60} {value:11.4f} {unit:8} {against}".rstrip(), flush=True)
