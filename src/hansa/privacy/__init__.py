"""What releases cost in privacy, how much noise a target takes, and where protective noise comes from.

epsilon(job, population=..., delta=...)   what a job will cost, against who sees its models, or against the server
epsilon_of(ledger, delta)                 what has been spent
multiplier(epsilon, delta, rate, rounds)  the noise that a target takes
calibrated(make, epsilon=..., ...)        the job with that noise, whatever its mechanism
plan(Target(...), noise=...)              the cohort that a target takes; plot_noise draws it
check_budget(job, population, ledger)     refuses a job that would exceed a budget
"""

from hansa.privacy.accountant import (
    ADD_OR_REMOVE,
    ALONE,
    MODELS,
    REPLACE,
    SERVER,
    Cost,
    check_budget,
    epsilon,
    epsilon_of,
)
from hansa.privacy.calibrate import analytic_gaussian, calibrated, classic_gaussian, multiplier
from hansa.privacy.plan import Plan, Target, plan, plot_noise

__all__ = [
    "ADD_OR_REMOVE",
    "ALONE",
    "MODELS",
    "REPLACE",
    "SERVER",
    "Cost",
    "Plan",
    "Target",
    "analytic_gaussian",
    "calibrated",
    "check_budget",
    "classic_gaussian",
    "epsilon",
    "epsilon_of",
    "multiplier",
    "plan",
    "plot_noise",
]
