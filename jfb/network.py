"""ImplicitNetwork: the three maps that define an implicit network."""

from abc import ABC, abstractmethod
from copy import deepcopy
from typing import NoReturn

import torch
from torch import Tensor, nn

from jfb.config import ResidualNorm
from jfb.folding import fold_batch_norms
from jfb.learned_start import LearnedStart


class ImplicitNetwork(nn.Module, ABC):
    """A network whose answer is read from a fixed point: ``N(d) = S(u*)`` where ``u* = T(u*, d)``.

    Three maps and a start define it (Wu Fung et al., AAAI 2022, eq. 1 to 3; letters in brackets are the paper's):

    * ``inject``  [Q]: raw inputs to latent space, evaluated once per input;
    * ``step``    [T]: one application of the fixed-point map, what an *iteration* is;
    * ``readout`` [S]: latent state to logits, evaluated once per result.

    Every tensor has the sample in its first dimension, and in evaluation mode nothing that a row computes depends on
    another row. For ``step`` this holds in training mode too: it uses no batch statistics.

    The network does not know how the fixed point is found (``jfb.solve``) or differentiated (``jfb.gradients``), so the same
    network can be trained with any gradient and served with any solver.

    Attributes:
        learned_start: guesses the fixed point, so that the iteration begins near it; None unless it was trained.
        bound_norm: in which ``contraction_bound`` and ``readout_lipschitz`` measure states: ``absolute`` (L2) or ``max``.
    """

    bound_norm: ResidualNorm = ResidualNorm.ABSOLUTE

    def __init__(self) -> None:
        super().__init__()
        self.learned_start: LearnedStart | None = None

    @abstractmethod
    def inject(self, inputs: Tensor) -> Tensor:
        """Map raw inputs ``[n, *input_shape]``, which are normalised in here, to the injection ``[n, ...]``."""

    @abstractmethod
    def step(self, state: Tensor, injection: Tensor) -> Tensor:
        """Apply the fixed-point map once: states ``[n, *state_shape]`` to states of the same shape."""

    @abstractmethod
    def readout(self, state: Tensor) -> Tensor:
        """Read logits ``[n, classes]`` from states ``[n, *state_shape]``."""

    def initial_state(self, injection: Tensor) -> Tensor:
        """Return the states that training starts at, and without a learned start every iteration.

        Zeros, shaped like the injection, unless overridden.
        """
        return torch.zeros_like(injection)

    def first_state(self, injection: Tensor) -> Tensor:
        """Return the states that an iteration starts at: what the learned start guesses if there is one, else ``initial_state``.

        A learned start is for inputs of one size; those of other sizes start at ``initial_state``.
        """
        if self.learned_start is None or injection.shape[1:] != self.learned_start.injection_shape:
            return self.initial_state(injection)
        return self.learned_start(injection)  # type: ignore[no-any-return]

    def constrain(self) -> None:
        """Project the weights of ``step`` so that it is a contraction.

        Called at construction and after every optimiser step. The default does nothing, for networks that contract with any
        weights.
        """

    def contraction_bound(self) -> float | None:
        """Return a guaranteed bound on the Lipschitz constant of ``step`` in the state (``bound_norm``), or None for none."""
        return None

    def readout_lipschitz(self) -> Tensor | None:
        """Return guaranteed bounds ``[classes, classes]`` on the readout's Lipschitz constants, or None if there are none.

        Entry i, j is at least the Lipschitz constant of ``logit_i − logit_j`` in the state (``bound_norm``).
        """
        return None

    def folded(self) -> "ImplicitNetwork":
        """Return a copy, for evaluation only, that computes the same maps with less work (up to rounding).

        The default folds batch normalisations into convolutions; networks that can fold more override it.
        """
        return fold_batch_norms(deepcopy(self).eval())

    def forward(self, *inputs: object, **settings: object) -> NoReturn:
        """Raise a ``TypeError``: an implicit network has no single pass."""
        raise TypeError(
            f"{type(self).__name__} has no single pass: call jfb.predict(network, inputs, tolerance=..., max_iterations=...), "
            "or to train it network.readout of the state that jfb.fixed_point(network, injection=network.inject(inputs)) returns"
        )
