"""Solvers: where to evaluate the map next. One algorithm a file."""

from jfb.solvers.anderson import Anderson
from jfb.solvers.picard import Picard
from jfb.solvers.solver import Memory, Solver

SOLVERS: dict[str, type[Solver]] = {"picard": Picard, "anderson": Anderson}

__all__ = ["SOLVERS", "Anderson", "Memory", "Picard", "Solver"]
