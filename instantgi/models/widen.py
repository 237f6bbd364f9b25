"""A larger network starts where a smaller one ended (Net2WiderNet, Chen et al., 2016)."""

import torch
from torch import Tensor, nn

from instantgi.models.fields import LocalFields
from instantgi.models.look import MEMORY


@torch.no_grad()
def widen(wide: LocalFields, narrow: LocalFields, seed: int = 0) -> None:
    """Give `wide` the weights of `narrow` such that it says the same; it looks at no features yet.

    Every unit of a hidden layer is there several times; what it passes on is divided among the
    copies at random, so that they part in training.

    Raises:
        ValueError: if the two see different things, or the units are no multiple of the narrow's.
    """
    units, fewer = wide.message.in_features, narrow.message.in_features
    if units % fewer or len(wide.grid) != len(narrow.grid) or wide.color != narrow.color:
        raise ValueError(
            f"fields of {units} units and {len(wide.grid)} samples do not start from {fewer} units "
            f"and {len(narrow.grid)} samples"
        )
    random = torch.Generator().manual_seed(seed)
    seen = 3 * len(narrow.grid) + 19
    copies = torch.arange(units) % fewer
    messages = torch.arange(units // 4) % (fewer // 4)
    around = [fewer + i * (fewer // 4) + messages for i in range(3)]
    every = torch.arange(wide.out.out_features)
    sources = {  # layer → the narrow layer's input and output for each of the wide one's
        "alone.0": (torch.arange(seen), copies),
        "alone.2": (copies, copies),
        "message": (copies, messages),
        "together.0": (torch.cat([copies, *around]), copies),
        "together.2": (copies, copies),
        "memory": (copies, torch.arange(MEMORY)),
        "out": (copies, every),
    }
    for name, (inputs, outputs) in sources.items():
        to, source = (fields.get_submodule(name) for fields in (wide, narrow))
        assert isinstance(to, nn.Linear) and isinstance(source, nn.Linear)
        to.weight.zero_()
        weight = source.weight[outputs][:, inputs]
        to.weight[:, : len(inputs)] = weight * _shares(len(outputs), inputs, random)
        to.bias.copy_(source.bias[outputs])


def _shares(rows: int, sources: Tensor, random: torch.Generator) -> Tensor:
    """[rows, inputs] in (0, 1], of sum 1 over the inputs of one source."""
    drawn = torch.rand(rows, len(sources), generator=random) + 0.5
    sums = torch.zeros(rows, int(sources.max()) + 1).index_add(1, sources, drawn)
    return drawn / sums[:, sources]
