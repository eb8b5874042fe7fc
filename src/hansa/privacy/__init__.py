"""What releases cost in privacy, and where protective noise comes from.

epsilon(job, population=..., delta=...)   what a job will cost
epsilon_of(ledger, delta)                 what has been spent
check_budget(job, population, ledger)     refuses a job that would exceed its own budget
"""

from hansa.privacy.accountant import ADD_OR_REMOVE, REPLACE, Cost, check_budget, epsilon, epsilon_of

__all__ = ["ADD_OR_REMOVE", "REPLACE", "Cost", "check_budget", "epsilon", "epsilon_of"]
