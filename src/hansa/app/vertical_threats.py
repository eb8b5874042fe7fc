"""`hansa threats --vertical`: what each party learns from each algorithm of different columns, as the code declares it.

The table in docs/vertical.md is what this prints; a test holds the two against each other. Parties' names stand for
their parts: the label owner, a feature owner, and a helper or coordinator without data.
"""

from collections.abc import Iterator

from hansa.app.terminal import emit, say, settings
from hansa.vertical import encode, features, predict, scale
from hansa.vertical.boosting import EncryptedBoosting
from hansa.vertical.boosting.shared import SharedBoosting
from hansa.vertical.glm import Glm
from hansa.vertical.learns import Learns
from hansa.vertical.psi import lookup, totals
from hansa.vertical.psi.intersect import CAP
from hansa.vertical.psi.protocols import PROTOCOLS
from hansa.vertical.psi.terms import Terms
from hansa.vertical.split import Relay, SplitLearning
from hansa.vertical.transfer import TransferLearning

LABELS, FEATURES, COORDINATOR, SERVER = "label owner", "feature owner", "coordinator", "server"
CLIENT, LARGE, LEARNER, HOLDER, ANOTHER = "small table", "large table", "learner", "owner of values", "other owner"
ASKER, SERVES = "asker", "owner who serves"
EACH, OTHER = "each owner", "the other"
ALIKE = (EACH, OTHER)


def declarations() -> Iterator[tuple[str, Learns]]:
    """Each algorithm's title, and who learns what from it."""
    for name, protocol in PROTOCOLS.items():
        helper = COORDINATOR if protocol.coordinated else ""
        terms = Terms(name, ALIKE, ALIKE, CAP, ("strip",), helper=helper)
        yield protocol.title, _alike(protocol.learns(terms))
    yield lookup.TITLE, lookup.learns(CLIENT, LARGE, lookup.QUERIES)
    yield totals.TITLES["cardinality"], totals.cardinality_learns(LEARNER, ANOTHER, CAP)
    yield totals.TITLES["sum"], totals.sum_learns(HOLDER, ANOTHER, CAP)
    yield "Agreed categories", _alike(encode.learns(ALIKE))
    yield "Scaling", _alike(scale.learns(ALIKE))
    yield "WOE, IV, KS, AUC", features.learns(LABELS, [FEATURES], "both", 1)
    yield Glm.title, Glm.learns
    yield EncryptedBoosting.title, EncryptedBoosting.learns
    yield SharedBoosting.title, SharedBoosting.learns
    yield "Split learning", SplitLearning(bottoms=(FEATURES,), top=LABELS).learns()
    yield "Split learning, folded like a U", SplitLearning(bottoms=(LABELS,), middles=(SERVER,), top=LABELS).learns()
    yield "Split learning in turns", _alike(Relay(server=SERVER, clients=ALIKE).learns())
    yield "Prediction as a service", predict.learns(ASKER, (SERVES,))
    yield "Transfer learning", _alike(TransferLearning(source=EACH, target=OTHER).learns())


def _alike(learns: Learns) -> Learns:
    """Of two owners that learn the same of each other, one."""
    return {party: sentences for party, sentences in learns.items() if party != OTHER}


def page() -> str:
    """The table in Markdown."""
    lines = ["| algorithm | party | learns, beyond its own input |", "|---|---|---|"]
    for title, learns in declarations():
        for at, (party, sentences) in enumerate(learns.items()):
            lines.append(f"| {title if not at else ''} | {party} | {'; '.join(sentences) or 'nothing'} |")
    return "\n".join(lines)


def threats() -> None:
    """Runs `hansa threats --vertical`."""
    for title, learns in declarations():
        for party, sentences in learns.items():
            emit("learns", algorithm=title, party=party, what=list(sentences))
    if not settings.json:
        say(page())
