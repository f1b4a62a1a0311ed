"""A folded network computes what the network computes."""

import pytest
import torch
from torch import nn

from jfb import ImplicitNetwork
from jfb.architectures import AuthorsResNet, ImplicitResNet
from jfb.architectures.authors_resnet import FrozenBatchNorm2d


def a_resnet() -> ImplicitNetwork:
    return ImplicitResNet((3, 12, 12), 4, channels=(6, 8), pool=(2, 1), blocks=1)


def authors(stem: str) -> ImplicitNetwork:
    return AuthorsResNet((1, 12, 12), 4, stem=stem, mean=0.3, std=0.2)  # type: ignore[arg-type]


def with_random_statistics(network: ImplicitNetwork) -> ImplicitNetwork:
    """Fresh normalisations do nothing, and would not show it if they were lost."""
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d | FrozenBatchNorm2d):
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 2)
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 2)
            nn.init.normal_(part.bias)
    return network.double().eval()


@pytest.mark.parametrize(
    ("make", "shape"),
    [(a_resnet, (3, 12, 12)), (lambda: authors("plain"), (1, 12, 12)), (lambda: authors("resnet"), (1, 12, 12))],
    ids=["implicit_resnet", "authors_plain", "authors_resnet"],
)
@torch.no_grad()
def test_every_map_is_the_same_after_folding_and_the_network_is_as_it_was(make: object, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network = with_random_statistics(make())  # type: ignore[operator]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    folded = network.folded()
    inputs = 100 * torch.rand(5, *shape, dtype=torch.float64)
    injection = network.inject(inputs)
    torch.testing.assert_close(folded.inject(inputs), injection)
    state = torch.randn_like(network.initial_state(injection))
    torch.testing.assert_close(folded.initial_state(injection), network.initial_state(injection))
    torch.testing.assert_close(folded.step(state, injection), network.step(state, injection))
    torch.testing.assert_close(folded.readout(state), network.readout(state))
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])
