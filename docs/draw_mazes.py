"""Draws docs/mazes.png: a maze, and how far the network's flood has come after some iterations, with its answer at each.

python -m training train mazes
python docs/draw_mazes.py model_store/mazes/1
"""

from pathlib import Path
from typing import Annotated

import matplotlib as mpl
import torch
import typer

import jfb
from training.data.mazes import COLOURS, Mazes, distinct_mazes

mpl.use("Agg")
from matplotlib import pyplot as plt

SEED = 2_000_000
"""Of mazes that no recipe uses."""


def states(network: jfb.ImplicitNetwork, image: torch.Tensor) -> list[torch.Tensor]:
    """The start, and the state after every iteration until nothing changes."""
    injection = network.inject(image)
    found = [network.initial_state(injection)]
    while len(found) == 1 or not torch.equal(found[-1], found[-2]):
        found.append(network.step(found[-1], injection))
    return found


def example(network: jfb.ImplicitNetwork, size: int) -> tuple[Mazes, list[torch.Tensor]]:
    """A maze with a long path on which the answer is wrong for most of the time and right at the end."""
    mazes = distinct_mazes(size, 300, seed=SEED)
    for place in mazes.path_length.argsort()[::-1]:
        maze = mazes[slice(place, place + 1)]
        course = states(network, torch.from_numpy(maze.images()).float())
        right = [bool(network.readout(state).argmax() == maze.labels[0]) for state in course]
        if right[-1] and not any(right[: len(right) // 2]):
            return maze, course
    raise ValueError(f"size: no such maze among {len(mazes)}")


@torch.no_grad()
def main(
    folder: Annotated[Path, typer.Argument(help="The folder of a version.")],
    size: Annotated[int, typer.Option(help="Cells per side.")] = 8,
    to: Annotated[Path, typer.Option(help="The picture.")] = Path("docs/mazes.png"),
) -> None:
    """Draw the picture."""
    network = jfb.load(folder).network
    maze, course = example(network, size)
    last = len(course) - 2  # the last iteration changes nothing
    moved = [(state - course[0]).norm(dim=1)[0] for state in course]
    figure, axes = plt.subplots(1, 5, figsize=(13, 3.1), layout="constrained")
    picture = maze.images()[0].transpose(1, 2, 0)
    axes[0].imshow(picture)
    axes[0].set_title(f"the maze: {COLOURS[maze.labels[0]]} is right")
    walls = torch.from_numpy(maze.pixels[0] == 0)
    for panel, iteration in zip(axes[1:], (1, round(last / 3), round(2 * last / 3), last), strict=True):
        probabilities = network.readout(course[iteration]).softmax(1)[0]
        answer = int(probabilities.argmax())
        flood = torch.where(walls, torch.nan, moved[iteration] / moved[-1].amax())
        panel.imshow(torch.zeros(*flood.shape, 3))
        panel.imshow(flood.sqrt(), cmap="viridis", vmin=0, vmax=1)
        panel.set_title(f"iteration {iteration}: {COLOURS[answer]}, {probabilities[answer]:.0%}")
    for panel in axes:
        panel.set_axis_off()
    figure.savefig(to, dpi=110)
    typer.echo(f"{to}: path of {maze.path_length[0]} pixels, flood depth {maze.flood_depth[0]}, {last} iterations")


if __name__ == "__main__":
    typer.run(main)
