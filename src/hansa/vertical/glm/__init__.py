"""Generalised linear models of columns that nobody joins.

Glm(family="logistic").fit(session, table, label)    this party's part of the model
FittedGlm.predict(session, table)                    all parties together
"""

from hansa.vertical.glm.fitted import FittedGlm
from hansa.vertical.glm.model import Glm

__all__ = ["FittedGlm", "Glm"]
