"""Random orders of submitting and cancelling: every request finishes once, with the correct result."""

from collections.abc import Sequence

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from numpy.typing import NDArray

from app.engine.lane import MAX_SECONDS_BETWEEN_LOOKS
from app.engine.masked import Masking
from app.engine.running_request import RunningRequest
from app.engine_client.errors import QueueFull
from app.engine_client.messages import Result
from jfb import ResidualNorm, Status
from jfb.onnx.one_row import OneRow
from tests.app.engine.geometric import (
    INJECT,
    NOWHERE,
    READOUT,
    STEP,
    every,
    geometric_graphs,
    make_message,
    make_request,
    make_scheduler,
    state_after,
)

SLOTS, MAX_WAITING_ROWS, CAP = 3, 12, 8


class AnyOrder(RuleBasedStateMachine):
    """Requests of known difficulty, some of which raise, in an engine whose clock counts the ticks."""

    requests = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = make_scheduler(SLOTS, MAX_WAITING_ROWS)
        self.now = 0
        self.known: dict[int, tuple[list[int], float]] = {}
        self.outstanding: set[int] = set()

    @rule(
        target=requests,
        iterations=st.lists(st.integers(1, 12), min_size=1, max_size=5),
        patience=st.none() | st.integers(0, 10),
        raises=st.sampled_from([NOWHERE] * 6 + [INJECT, STEP, READOUT]),
    )
    def submit(self, iterations: list[int], patience: int | None, raises: float) -> int:
        id = len(self.known)
        self.known[id] = iterations, raises
        deadline = None if patience is None else float(self.now + patience)
        before = self.scheduler.waiting_rows
        try:
            self.scheduler.submit(make_request(id, iterations, cap=CAP, deadline=deadline, raises=raises))
        except QueueFull:
            assert before + len(iterations) > MAX_WAITING_ROWS
        else:
            assert self.scheduler.waiting_rows == before + len(iterations) <= MAX_WAITING_ROWS
            self.outstanding.add(id)
        return id

    @rule(id=consumes(requests))
    def cancel(self, id: int) -> None:
        self.scheduler.cancel(id)
        self.outstanding.discard(id)

    @rule()
    def tick(self) -> None:
        for request in self.scheduler.tick(float(self.now)):
            self.outstanding.remove(request.number)  # raises if it has come out before, or was cancelled
            if request.failure is not None:
                assert self.known[request.number][1] != NOWHERE
                continue
            late = [at <= self.now for at in request.deadline]
            self.check(request.number, request.iterations, request.status, late, request.logits)
        assert self.scheduler.active_rows == SLOTS or self.scheduler.waiting_rows == 0
        self.now += 1

    def check(
        self, id: int, iterations: Sequence[int], status: Sequence[str], late: Sequence[bool], logits: NDArray[np.floating]
    ) -> None:
        """Compare what rows got with the closed form."""
        for row, needed in enumerate(self.known[id][0]):
            took = iterations[row]
            match status[row]:
                case Status.CONVERGED:
                    assert took == needed <= CAP
                case Status.MAX_ITERATIONS:
                    assert took == CAP < needed
                case Status.DEADLINE:
                    assert took < min(needed, CAP)
                    assert late[row]
                case _:
                    raise AssertionError(f"a row cannot end as {status[row]}")
            if took:
                assert logits[row, 0] == state_after(took)

    @invariant()
    def no_request_is_forgotten(self) -> None:
        assert self.scheduler.active_rows <= SLOTS
        assert self.scheduler.busy or not self.outstanding

    def teardown(self) -> None:
        for _ in range(1000):
            if not self.scheduler.busy:
                break
            self.tick()
        assert not self.outstanding
        assert self.scheduler.waiting_rows == self.scheduler.active_rows == 0
        assert self.scheduler.step_evaluations == self.scheduler.iterations + self.scheduler.wasted_iterations


class AnyOrderMasked(AnyOrder):
    """The same, up to four iterations at a time, in which rows that have ended are masked."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler._batch.measure(every(MAX_SECONDS_BETWEEN_LOOKS / 5.5), Masking((1, 2), (1, 4)))


class AnyOrderAlone(AnyOrder):
    """The same, where some requests arrive alone, and their rows live in one call, at most three iterations long."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler._batch._one_row["picard"] = OneRow(geometric_graphs(), ResidualNorm.ABSOLUTE), 3

    @rule(target=AnyOrder.requests, needed=st.integers(1, 12))
    def submit_alone(self, needed: int) -> int:
        id = len(self.known)
        self.known[id] = [needed], NOWHERE
        message = make_message(id, [needed], cap=CAP)
        started = self.scheduler.live(message)
        assert (started is None) == self.scheduler.busy
        if isinstance(started, Result):
            assert needed <= 3
            self.check(id, started.iterations, started.status, [False], started.logits_array())
            return id
        try:
            self.scheduler.submit(RunningRequest(id, message, (2,)), started)
        except QueueFull:
            assert self.scheduler.waiting_rows == MAX_WAITING_ROWS
        else:
            self.outstanding.add(id)
        return id


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyOrderMasked = AnyOrderMasked.TestCase
TestAnyOrderMasked.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestAnyOrderAlone = AnyOrderAlone.TestCase
TestAnyOrderAlone.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
