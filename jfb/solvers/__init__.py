"""Solvers: algorithms that choose where to evaluate the map next, one per file."""

from jfb.network import ImplicitNetwork
from jfb.solvers.anderson import Anderson
from jfb.solvers.forward_backward import ForwardBackward
from jfb.solvers.mixing import Mixing
from jfb.solvers.peaceman_rachford import PeacemanRachford
from jfb.solvers.picard import Picard
from jfb.solvers.solver import Memory, Solver

SOLVERS: dict[str, type[Solver]] = {
    "picard": Picard,
    "anderson": Anderson,
    "forward_backward": ForwardBackward,
    "peaceman_rachford": PeacemanRachford,
    "mixing": Mixing,
}


def solvers_for(kind: type[ImplicitNetwork]) -> list[str]:
    """Names of the solvers for any network of a class. A splitting method needs a map that splits: a ``MonotoneNetwork``.

    Learned solvers are not among them, because each belongs to one network (``jfb.Checkpoint.solvers``).
    """
    return [name for name, solver in SOLVERS.items() if issubclass(kind, solver.needs) and not solver.learned]


def check_solver(solver: str, architecture: str, kind: type[ImplicitNetwork]) -> None:
    """Check that a solver, by name, can solve networks of an architecture.

    Args:
        solver: one of ``SOLVERS``.
        architecture: its name, for the message.
        kind: its class.

    Raises:
        ValueError: naming both, and the solvers that can.
    """
    suitable = solvers_for(kind)
    if solver not in suitable and not SOLVERS[solver].learned:
        raise ValueError(
            f"solver: must be one of {', '.join(suitable)} for {architecture!r} (got {solver!r}, which splits the map of a "
            "monotone network)"
        )


__all__ = [
    "SOLVERS",
    "Anderson",
    "ForwardBackward",
    "Memory",
    "Mixing",
    "PeacemanRachford",
    "Picard",
    "Solver",
    "check_solver",
    "solvers_for",
]
