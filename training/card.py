"""The model card: README.md of a version."""

from pathlib import Path
from typing import Any

import yaml

from jfb.model_config import ModelConfig
from training.recipe import Recipe

CARD = """\
---
library_name: jfb
tags: [implicit-network, jacobian-free-backpropagation]
---

# {name}

An implicit classifier (`{architecture}`, {parameters:,} parameters) of {classes} classes: its answer is read from the fixed
point of one small block, trained with the gradient `{gradient}`.

![loss, accuracy and iterations over the epochs](curves.png)

| on the test part of `{source}` ({test:,} inputs) | |
|---|---|
| accuracy | {accuracy:.2%} |
| mean iterations at tolerance {tolerance:g} ({residual_norm}), at most {max_iterations} | {iterations:.1f} |
| converged | {converged:.2%} |
| training time | {seconds:.0f} s |
| contraction factor: guaranteed bound | {bound} |
| contraction factor: largest measured at fixed points | {contraction_factor:.3f} |

Inputs are raw, `{dtype}` of shape `{shape}`{values}; normalisation is part of the network. Labels: {labels}.

The recipe:

```yaml
{recipe}```
"""


def write_card(path: Path, config: ModelConfig, recipe: Recipe, metrics: dict[str, Any]) -> None:
    """Write the card of a trained model from its config, its recipe and its ``metrics.json``."""
    shown = ", ".join(config.classes[:20]) + (", …" if len(config.classes) > 20 else "")
    bound = metrics["contraction_bound"]
    path.write_text(
        CARD.format(
            **{**metrics, **config.serving.model_dump(mode="json")},
            name=recipe.name,
            architecture=config.architecture.name,
            classes=len(config.classes),
            gradient=recipe.gradient.name,
            source=recipe.data.source,
            test=config.provenance["inputs"]["test"],
            bound="none" if bound is None else f"{bound:.3f}",
            dtype=config.input.dtype,
            shape=list(config.input.shape),
            values="" if config.input.low is None else f", from {config.input.low:g} to {config.input.high:g}",
            labels=shown,
            recipe=yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=True), sort_keys=False, width=100),
        )
    )
