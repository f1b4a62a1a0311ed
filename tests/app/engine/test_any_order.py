"""Whatever is submitted and cancelled, in whatever order: every job comes out once and is right."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from app.engine_client.errors import QueueFull
from jfb import Status
from tests.app.engine.geometric import INJECT, NOWHERE, READOUT, STEP, make_engine, make_job, state_after

SLOTS, MAX_WAITING_ROWS, CAP = 3, 12, 8


class AnyOrder(RuleBasedStateMachine):
    """Jobs of known difficulty, some of which raise, in an engine whose clock counts the ticks."""

    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.engine = make_engine(SLOTS, MAX_WAITING_ROWS)
        self.now = 0
        self.known: dict[int, tuple[list[int], float]] = {}
        self.outstanding: set[int] = set()

    @rule(
        target=jobs,
        iterations=st.lists(st.integers(1, 12), min_size=1, max_size=5),
        patience=st.none() | st.integers(0, 10),
        raises=st.sampled_from([NOWHERE] * 6 + [INJECT, STEP, READOUT]),
    )
    def submit(self, iterations: list[int], patience: int | None, raises: float) -> int:
        id = len(self.known)
        self.known[id] = iterations, raises
        deadline = None if patience is None else float(self.now + patience)
        before = self.engine.waiting_rows
        try:
            self.engine.submit(make_job(id, iterations, cap=CAP, deadline=deadline, raises=raises))
        except QueueFull:
            assert before + len(iterations) > MAX_WAITING_ROWS
        else:
            assert self.engine.waiting_rows == before + len(iterations) <= MAX_WAITING_ROWS
            self.outstanding.add(id)
        return id

    @rule(id=consumes(jobs))
    def cancel(self, id: int) -> None:
        self.engine.cancel(id)
        self.outstanding.discard(id)

    @rule()
    def tick(self) -> None:
        for job in self.engine.tick(float(self.now)):
            self.outstanding.remove(job.id)  # raises if it has come out before, or was cancelled
            iterations, raises = self.known[job.id]
            if job.failure is not None:
                assert raises != NOWHERE
                continue
            for row, needed in enumerate(iterations):
                took = job.iterations[row]
                match job.status[row]:
                    case Status.CONVERGED:
                        assert took == needed <= CAP
                    case Status.MAX_ITERATIONS:
                        assert took == CAP < needed
                    case Status.DEADLINE:
                        assert took < min(needed, CAP)
                        assert job.deadline[row] <= self.now
                    case _:
                        raise AssertionError(f"a row cannot end as {job.status[row]}")
                if took:
                    assert job.logits[row, 0] == state_after(took)
        assert self.engine.active_rows == SLOTS or self.engine.waiting_rows == 0
        self.now += 1

    @invariant()
    def no_job_is_forgotten(self) -> None:
        assert self.engine.active_rows <= SLOTS
        assert self.engine.busy or not self.outstanding

    def teardown(self) -> None:
        for _ in range(1000):
            if not self.engine.busy:
                break
            self.tick()
        assert not self.outstanding
        assert self.engine.waiting_rows == self.engine.active_rows == 0
        assert self.engine.step_evaluations == self.engine.iterations


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
