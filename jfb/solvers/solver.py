"""What a solver is: given a point and its image, it proposes the next point."""

from abc import ABC, abstractmethod

from torch import Tensor

from jfb.network import ImplicitNetwork

Memory = dict[str, Tensor]
"""What a solver remembers from iteration to iteration; every tensor has the row in its first dimension."""


class Solver(ABC):
    """An algorithm for ``u = T(u)``, without the loop that drives it.

    The driver (``jfb.solve`` offline, the engine in the server) has the solver evaluate the image of a point, which is
    ``step(point, injection)`` unless the solver splits the map, measures the residual ``‖image − point‖``, ends the rows
    that are done with ``image`` as their answer, and asks the solver for the next point of the others. So every solver
    counts the same: one iteration is one evaluation.

    Rows are independent: a solver may use a row's own history and nothing else, so that rows can be gathered, joined
    and dropped between any two iterations.

    Attributes:
        needs: the class of networks whose maps ``evaluate`` takes.
    """

    needs: type = ImplicitNetwork

    @property
    def splits(self) -> bool:
        """Whether an iteration evaluates something else than ``step`` as a whole."""
        return type(self).evaluate is not Solver.evaluate

    def check(self, kind: type) -> None:
        """Refuse networks of a class that lacks what ``evaluate`` needs.

        Raises:
            ValueError: naming both.
        """
        if not issubclass(kind, self.needs):
            raise ValueError(
                f"solver: {type(self).__name__} splits the map of a {self.needs.__name__}, and cannot solve a {kind.__name__}"
            )

    @abstractmethod
    def start(self, point: Tensor) -> Memory:
        """Return the memory of rows that start at ``point`` (``[n, *state_shape]``)."""

    def evaluate(self, network: ImplicitNetwork, memory: Memory, point: Tensor, injection: Tensor) -> Tensor:
        """Return the images of the points, shaped like ``point``: ``network.step`` unless the solver splits the map.

        A solver that does may keep in ``memory`` what ``propose`` needs, in place.
        """
        return network.step(point, injection)

    @abstractmethod
    def propose(self, memory: Memory, point: Tensor, image: Tensor) -> Tensor:
        """Return the next points, shaped like ``point``, and bring ``memory`` up to date in place."""
