"""Gradients: schemes that differentiate the fixed point, one per file."""

from jfb.gradients.explicit import Explicit
from jfb.gradients.gradient import Gradient, Search
from jfb.gradients.jacobian import Jacobian
from jfb.gradients.jfb import JFB
from jfb.gradients.neumann import Neumann
from jfb.gradients.unrolled import Unrolled

GRADIENTS: dict[str, type[Gradient]] = {
    "jfb": JFB,
    "neumann": Neumann,
    "jacobian": Jacobian,
    "unrolled": Unrolled,
    "explicit": Explicit,
}

__all__ = ["GRADIENTS", "JFB", "Explicit", "Gradient", "Jacobian", "Neumann", "Search", "Unrolled"]
