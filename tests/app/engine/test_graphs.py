"""What CUDA is called with, by a stand-in that has PyTorch's signatures: a capture on a side stream, and eager where it fails."""

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import pytest
import torch

from app.engine import graphs


class FakeCuda:
    """Notes what happens in which order."""

    def __init__(self, *, fails: bool) -> None:
        self.fails = fails
        self.events: list[str] = []
        self.streams: list[Any] = []

    def note(self, event: str) -> None:
        self.events.append(event)

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.streams.append(stream)
        try:
            yield
        finally:
            self.streams.pop()

    @contextmanager
    def graph(self, *arguments: Any, **settings: Any) -> Iterator[None]:
        signature(torch.cuda.graph.__init__).bind(None, *arguments, **settings)
        assert settings["stream"] is self.streams[-1]
        assert settings["capture_error_mode"] == "thread_local"
        self.note("capture begins")
        yield
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.note("capture ends")


class FakeStream:
    def __init__(self, cuda: FakeCuda, device: torch.device) -> None:
        self._cuda = cuda

    def wait_stream(self, stream: "FakeStream") -> None:
        self._cuda.note("wait")


class FakeGraph:
    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda

    def replay(self) -> None:
        self._cuda.note("replay")


@pytest.fixture
def cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda(fails=request.param)
    default = FakeStream(fake, torch.device("cuda"))
    for name, value in {
        "Stream": lambda device: FakeStream(fake, device),
        "graph_pool_handle": lambda: (0, 1),
        "current_stream": lambda device: default,
        "stream": fake.stream,
        "graph": fake.graph,
        "CUDAGraph": lambda: FakeGraph(fake),
        "synchronize": lambda device: fake.note("synchronise"),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return fake


@pytest.mark.parametrize("cuda", [False], indirect=True)
def test_a_function_is_warmed_up_and_captured_and_then_replayed(cuda: FakeCuda) -> None:
    capture = graphs.CudaGraphs(torch.device("cuda"))
    run = capture(lambda: cuda.note("run"))
    run()
    warm_up = ["run"] * graphs.WARM_UPS
    assert cuda.events == ["wait", *warm_up, "capture begins", "run", "capture ends", "wait", "replay"]
    assert capture.failure is None


@pytest.mark.parametrize("cuda", [True], indirect=True)
def test_after_a_capture_that_fails_everything_runs_eagerly_on_the_stream_of_before(cuda: FakeCuda) -> None:
    capture = graphs.CudaGraphs(torch.device("cuda"))
    captured = [capture(lambda: cuda.note("run")) for _ in range(2)]
    assert capture.failure == "RuntimeError: operation not permitted when stream is capturing"
    assert cuda.events.count("capture begins") == 1
    assert cuda.streams == []
    cuda.events.clear()
    for run in captured:
        run()
    assert cuda.events == ["run", "run"]
