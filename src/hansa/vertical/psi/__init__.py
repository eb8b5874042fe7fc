"""Private set intersection: owners find out whom they share, and no more than was agreed.

made = align(mesh, table, Keys("mail"), accept=True)       at every owner; an AlignedTable of the shared rows
"""

from hansa.vertical.psi.audit import Audit
from hansa.vertical.psi.intersect import Intersection, align, coordinate, intersect
from hansa.vertical.psi.keys import Keys
from hansa.vertical.psi.lookup import Prepared, look_up
from hansa.vertical.psi.totals import Cardinality, Total, cardinality, intersection_sum

__all__ = [
    "Audit",
    "Cardinality",
    "Intersection",
    "Keys",
    "Prepared",
    "Total",
    "align",
    "cardinality",
    "coordinate",
    "intersect",
    "intersection_sum",
    "look_up",
]
