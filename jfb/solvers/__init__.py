"""Solvers: where to evaluate the map next. One algorithm a file."""

from jfb.solvers.anderson import Anderson
from jfb.solvers.forward_backward import ForwardBackward
from jfb.solvers.peaceman_rachford import PeacemanRachford
from jfb.solvers.picard import Picard
from jfb.solvers.solver import Memory, Solver

SOLVERS: dict[str, type[Solver]] = {
    "picard": Picard,
    "anderson": Anderson,
    "forward_backward": ForwardBackward,
    "peaceman_rachford": PeacemanRachford,
}


def solvers_for(kind: type) -> list[str]:
    """Names of the solvers that can solve networks of a class: those that split the map need its parts."""
    return [name for name, solver in SOLVERS.items() if issubclass(kind, solver.needs)]


__all__ = ["SOLVERS", "Anderson", "ForwardBackward", "Memory", "PeacemanRachford", "Picard", "Solver", "solvers_for"]
