"""A network whose every iteration is known in closed form, and which raises for chosen rows."""

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np
import onnx.parser
import torch
from onnx import ModelProto
from torch import Tensor

from app.engine.backends import TorchBackend
from app.engine.batch import RunningBatch
from app.engine.running_request import RunningRequest
from app.engine.scheduler import Scheduler
from app.engine.warm_starts import WarmStarts
from app.engine_client.messages import Request, Stop
from jfb import ImplicitNetwork, LabelStop, ResidualNorm
from jfb.solvers import Picard
from tests.app.engine.requests import sent_request

NOWHERE, INJECT, STEP, READOUT = 0.0, 1.0, 2.0, 3.0
"""Where a row makes the network raise."""


class Geometric(ImplicitNetwork):
    """``u = a u + 1`` from 0, the input of a row being ``(a, where it raises)``.

    Iteration k has the residual ``a^(k−1)`` (absolute) and the state ``1 + a + … + a^(k−1)``.
    """

    def inject(self, inputs: Tensor) -> Tensor:
        raise_at(INJECT, inputs)
        return inputs

    def initial_state(self, injection: Tensor) -> Tensor:
        return torch.stack([torch.zeros_like(injection[:, 0]), injection[:, 1]], 1)

    def step(self, state: Tensor, injection: Tensor) -> Tensor:
        raise_at(STEP, injection)
        return torch.stack([injection[:, 0] * state[:, 0] + 1, injection[:, 1]], 1)

    def readout(self, state: Tensor) -> Tensor:
        raise_at(READOUT, state)
        return torch.stack([state[:, 0], -state[:, 0]], 1)


def geometric_graphs() -> dict[str, ModelProto]:
    """The same network, which raises for no row, as ONNX graphs."""
    header = '<ir_version: 10, opset_import: ["": 20]>'
    first, second = "first = Constant <value = float[2] {1, 0}> ()", "second = Constant <value = float[2] {0, 1}> ()"
    texts = {
        "inject": "map (float[n,2] inputs) => (float[n,2] injection) { injection = Identity (inputs) }",
        "initial_state": f"map (float[n,2] injection) => (float[n,2] state) {{ {second} state = Mul (injection, second) }}",
        "step": f"""map (float[n,2] state, float[n,2] injection) => (float[n,2] next_state) {{
            {first} {second}
            product = Mul (state, injection)
            own = Mul (product, first)
            sum = Add (own, first)
            kept = Mul (injection, second)
            next_state = Add (sum, kept)
        }}""",
        "readout": """map (float[n,2] state) => (float[n,2] logits) {
            both = Constant <value = float[2,2] {1, -1, 0, 0}> ()
            logits = MatMul (state, both)
        }""",
    }
    return {name: onnx.parser.parse_model(f"{header} {text}") for name, text in texts.items()}


def raise_at(where: float, rows: Tensor) -> None:
    if bool((rows[:, 1] == where).any()):
        raise ArithmeticError(f"raises at {where}")


def make_scheduler(
    slots: int = 4,
    max_waiting_rows: int = 100,
    backend: TorchBackend | None = None,
    warm_starts: WarmStarts | None = None,
    clock: Callable[[], float] = time.monotonic,
    label_stop: LabelStop | None = None,
) -> Scheduler:
    """A scheduler of the network above, in float64."""
    batch = RunningBatch(
        backend or TorchBackend(Geometric(), dtype=torch.float64),
        {"picard": Picard()},
        ResidualNorm.ABSOLUTE,
        (2,),
        slots=slots,
        label_stop=label_stop,
    )
    return Scheduler(batch, max_waiting_rows=max_waiting_rows, warm_starts=warm_starts, clock=clock)


def make_message(
    id: int,
    iterations: Sequence[int],
    *,
    cap: int = 1000,
    deadline: float | None = None,
    ratio: float = 0.5,
    raises: float = NOWHERE,
    session: str | None = None,
    streamed: bool = False,
    stop: Stop = "tolerance",
) -> Request:
    """A request whose rows converge after exactly that many iterations each, if nothing else ends them."""
    rows = len(iterations)
    inputs = np.tile(np.array([[ratio, raises]], dtype=np.float32), (rows, 1))
    tolerance = [0.5 ** (k - 1) for k in iterations]
    return sent_request(id, inputs, tolerance, [cap] * rows, [deadline] * rows, session=session, streamed=streamed, stop=stop)


def make_request(id: int, iterations: Sequence[int], **options: Any) -> RunningRequest:
    """The same as the scheduler gets it."""
    return RunningRequest(id, make_message(id, iterations, **options), (2,))


def every(seconds: float) -> Callable[[], float]:
    """A clock by which everything takes that long."""
    times: Iterator[float] = count(0.0, seconds)
    return lambda: next(times)


def state_after(iterations: int) -> float:
    """The state of a row with the ratio one half."""
    return 2 - 0.5 ** (iterations - 1)


def tick_until_idle(scheduler: Scheduler, now: float = 0.0) -> list[RunningRequest]:
    """Everything that comes out, in order."""
    finished: list[RunningRequest] = []
    for _ in range(10_000):
        if not scheduler.busy:
            return finished
        finished += scheduler.tick(now)
    raise AssertionError("the scheduler does not come to an end")
