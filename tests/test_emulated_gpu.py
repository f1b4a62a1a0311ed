"""The emulated GPU finds what does not work on a real one, and replays graphs as that does."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.emulated_gpu import CPU, GPU, emulated_gpu, waits


def capture(run: Callable[[], object]) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


def test_tensors_know_where_they_are() -> None:
    with emulated_gpu():
        here, there = torch.arange(3.0), torch.arange(3.0, device="cuda")
        for tensor in (
            there + 1,
            there[1:],
            torch.zeros_like(there),
            here.to(GPU),
            there.max(0).values,
            torch.stack([there, there]),
        ):
            assert tensor.device == GPU
            assert tensor.is_cuda
        for tensor in (here, there.cpu(), there.to("cpu"), torch.empty_like(there, device="cpu", pin_memory=True)):
            assert tensor.device == CPU
        layer = torch.nn.Linear(3, 2).to(GPU)
        layer(there).sum().backward()
        assert {parameter.grad.device for parameter in layer.parameters() if parameter.grad is not None} == {GPU}
        there.cpu()[0] = 5  # a copy
        assert there[0] == 0
        with pytest.raises(RuntimeError, match="on the same device"):
            there + here
        with pytest.raises(TypeError, match="can't convert cuda"):
            there.numpy()


def test_waits_are_counted() -> None:
    with emulated_gpu():
        tensor, on_host = torch.arange(3.0, device=GPU), torch.empty(3, pin_memory=True)
        index = torch.tensor([0, 2]).pin_memory().to(GPU, non_blocking=True)
        on_host.copy_(tensor, non_blocking=True)
        tensor[index] += torch.full((2,), 2.0, device=GPU)
        assert not waits
        operations: list[Callable[[], object]] = [
            lambda: tensor.sum().item(),
            lambda: bool((tensor > 1).any()),
            lambda: tensor.cpu(),
            lambda: tensor[tensor > 1],
            lambda: tensor[np.array([0])],
            lambda: torch.tensor([1.0], device=GPU),
            lambda: torch.zeros(1).to(GPU),
        ]
        for number, operation in enumerate(operations, 1):
            operation()
            assert waits.total() == number
            with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
                capture(operation)


def test_a_graph_computes_the_same_operations_on_the_same_tensors_and_no_python() -> None:
    runs = []
    with emulated_gpu():
        values, total = torch.ones(3, device=GPU), torch.zeros(1, device=GPU)

        def run() -> None:
            runs.append(len(runs))
            doubled = 2 * values
            total.copy_(doubled.sum().view(1) + len(runs))

        graph = capture(run)
        values += 1
        graph.replay()
        assert total.tolist() == [2 * 6 + 1]
        graph.replay()
    assert runs == [0]
