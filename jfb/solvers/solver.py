"""The interface of a solver: from a state and ``T`` of it, propose the state to evaluate next."""

from abc import ABC, abstractmethod

from torch import Tensor

from jfb.network import ImplicitNetwork

Memory = dict[str, Tensor]
"""The tensors that a solver keeps between iterations; the first dimension of each is the row."""


class Solver(ABC):
    """An algorithm for ``u = T(u)``, without the loop that drives it.

    The loop (``jfb.solve`` offline, the engine in the server) calls ``evaluate`` for ``next_state``, which is ``step(state,
    injection)`` unless the solver splits the map, and measures the residual ``‖next_state − state‖``. A row that has ended is
    answered from its ``next_state``; for the others ``propose`` returns the state to evaluate next. So every solver counts the
    same: one iteration is one evaluation.

    Rows are independent: a solver may use a row's own history and nothing else, so that rows can be gathered, joined
    and dropped between any two iterations.

    Attributes:
        needs: the class of networks that the solver can solve.
        learned: whether its coefficients were fitted to one network, with which they are stored.
    """

    needs: type = ImplicitNetwork
    learned: bool = False

    @property
    def splits(self) -> bool:
        """Whether an iteration evaluates parts of the map, not ``step`` as a whole."""
        return type(self).evaluate is not Solver.evaluate

    def check(self, kind: type[ImplicitNetwork]) -> None:
        """Check that the solver can solve networks of a class.

        Raises:
            ValueError: if it needs another class, naming both.
        """
        if not issubclass(kind, self.needs):
            raise ValueError(f"network: must be a {self.needs.__name__} for {type(self).__name__} (got {kind.__name__})")

    @abstractmethod
    def start(self, state: Tensor) -> Memory:
        """Return the memory of rows that start at ``state`` (``[n, *state_shape]``)."""

    def evaluate(self, network: ImplicitNetwork, memory: Memory, state: Tensor, injection: Tensor) -> Tensor:
        """Apply the map once: ``network.step``, or its parts where the solver splits the map.

        Such a solver may update ``memory`` in place.

        Args:
            state: shape ``[n, *state_shape]``.
            injection: shape ``[n, ...]``.

        Returns:
            ``next_state``, shaped like ``state``.
        """
        return network.step(state, injection)

    @abstractmethod
    def propose(self, memory: Memory, state: Tensor, next_state: Tensor) -> Tensor:
        """Return the states to evaluate next, shaped like ``state``, and update ``memory`` in place.

        Args:
            state: where the map was evaluated, shape ``[n, *state_shape]``.
            next_state: what ``evaluate`` returned.
        """
