"""The profile of seeds: what `Seeds` hold, coded by what their context knows of them."""

import numpy as np
import torch
from torch import Tensor

from instantgi.codec import entropy
from instantgi.codec.bitstream import FormatError
from instantgi.codec.entropy import Decoder, Ints, Part
from instantgi.codec.header import SEEDS_PER_BLOCK, SeedsHeader
from instantgi.context import PER_NODE, WEIGHT_BITS, Context, num_nodes
from instantgi.points.seeds import SeedGrid
from instantgi.representations import LARGEST_NUMBER, Seeds
from instantgi.seeds import Perceptron

MOST_BITS = 16  # of the fraction of weights
LARGEST_WEIGHT = 2**24  # in steps of 2^-bits: float32 holds all of them
LARGEST_OF_CONTEXT = 32512  # ±127 in 2^-8, of weights and biases


def header_of(seeds: Seeds) -> SeedsHeader:
    """Raises ValueError for seeds that are not rounded."""
    context, grid = seeds.context, seeds.grid
    if context is None or seeds.bases is None:
        raise ValueError("seeds that are not rounded have no file of their own; use lossless")
    if grid.count < grid.num:
        raise ValueError("these seeds are the beginning of a file; decode the whole of it")
    hidden = (seeds.colors.sizes[1], seeds.shapes.sizes[1], context.network.sizes[1])
    return SeedsHeader(
        grid.random_seed,
        grid.num,
        seeds.features.shape[1],
        seeds.per_seed,
        hidden,
        seeds.bases,
        context.longest,
        context.resolutions,
    )


def encode_blocks(seeds: Seeds) -> list[list[bytes]]:
    """The payloads of each run of seeds, in the order of SEED_KINDS."""
    assert seeds.context is not None
    symbols = seeds.symbols
    if bool((symbols.abs() > LARGEST_NUMBER).any()):
        raise ValueError("seeds have numbers of more than 2^30 steps, which no file holds")
    begins = range(0, seeds.grid.num, SEEDS_PER_BLOCK)
    return [
        encode_block(seeds.context, seeds.grid, begin, symbols[begin : begin + SEEDS_PER_BLOCK])
        for begin in begins
    ]


def encode_block(context: Context, grid: SeedGrid, first: int, symbols: Tensor) -> list[bytes]:
    """The payloads of the numbers [num, D] of seeds from `first` on."""
    means, levels, _ = context.integers(grid, slice(first, first + len(symbols)))
    kinds = (part.split(context.counts, 1) for part in (symbols, means, levels))
    return [
        entropy.encode(entropy.logistic_parts(*(part.numpy() for part in parts)))
        for parts in zip(*kinds, strict=True)
    ]


def decode_block(
    context: Context, grid: SeedGrid, first: int, num: int, payloads: list[bytes]
) -> tuple[Ints, Ints]:
    """Numbers [num, D] of seeds from `first` on, what is missing at its mean, and turns [num, 3].

    Raises:
        FormatError: if the payloads cannot be of so many.
    """
    means, levels, turns = context.integers(grid, slice(first, first + num))
    found = []
    for i, (mean, level) in enumerate(
        zip(means.split(context.counts, 1), levels.split(context.counts, 1), strict=True)
    ):
        if i < len(payloads):
            decoder = Decoder(payloads[i])
            found.append(entropy.take_logistic(decoder, mean.numpy(), level.numpy()))
        else:
            found.append((mean.numpy() + 4) >> 3)
    numbers = np.concatenate(found, 1)
    if abs(numbers).max(initial=0) > LARGEST_NUMBER:
        raise FormatError("is damaged: a number of a seed is out of range")
    return numbers, turns.numpy()


# --- networks ------------------------------------------------------------------------------------


def encode_networks(seeds: Seeds) -> bytes:
    """The signs of the context, then the networks for colors, shapes and context."""
    assert seeds.context is not None
    head, parts, begin = bytearray(), [], 0
    for count in _nodes_of_levels(seeds.grid, seeds.context.resolutions, seeds.context.longest):
        signs = (seeds.context.signs[begin : begin + count].reshape(-1) > 0).long().numpy()
        begin += count
        share = min(max(round(256 * float(signs.mean())), 1), 255)
        head.append(share)
        parts.append(Part(signs, entropy.coin_table(share)))
    for network in (seeds.colors, seeds.shapes, seeds.context.network):
        values = [part.detach().cpu().double().reshape(-1) for part in network.tensors]
        bits = _fraction(torch.cat(values))
        head.append(bits)
        for value in values:
            code, coded = entropy.signed_parts((value * 2**bits).long().numpy())
            head.append(code)
            parts += coded
    return bytes(head) + entropy.encode(parts)


def decode_networks(
    payload: bytes, header: SeedsHeader, grid: SeedGrid, channels: int
) -> tuple[Perceptron, Perceptron, Context]:
    """For colors and shapes, and what codes the seeds.

    Raises:
        FormatError: if the payload cannot be of these sizes.
    """
    nodes = _nodes_of_levels(grid, header.resolutions, header.longest)
    inputs = PER_NODE * len(nodes)
    sizes = [
        (header.features, header.hidden[0], channels * header.per_seed),
        (header.features, header.hidden[1], 3 * header.per_seed),
        (inputs, header.hidden[2], 2 * sum(header.counts) + 3),
    ]
    at = len(nodes) + 5 * len(sizes)
    if len(payload) < at or 0 in payload[: len(nodes)]:
        raise FormatError("is damaged: its networks are missing")
    decoder, head = Decoder(payload[at:]), iter(payload[:at])
    signs = [decoder.take(PER_NODE * count, entropy.coin_table(next(head))) for count in nodes]
    networks = []
    for inputs, hidden, outputs in sizes:
        shapes = [(inputs, hidden), (hidden,), (hidden, outputs), (outputs,)]
        bits = next(head)
        if bits > (WEIGHT_BITS if len(networks) == 2 else MOST_BITS):
            raise FormatError(f"is damaged: weights in steps of 2^-{bits}")
        tensors = []
        for shape in shapes:
            found = entropy.take_signed(decoder, int(np.prod(shape)), next(head))
            if abs(found).max(initial=0) > LARGEST_WEIGHT:
                raise FormatError("is damaged: a weight is out of range")
            tensors.append(torch.from_numpy(found.reshape(shape)).double() / 2**bits)
        networks.append(Perceptron(*(tensor.float() for tensor in tensors)))
    colors, shapes, network = networks
    scaled = [part.double() * 2**WEIGHT_BITS for part in network.tensors]
    if any(
        (part != part.round()).any() or (abs(part) > LARGEST_OF_CONTEXT).any() for part in scaled
    ):
        raise FormatError("is damaged: a weight of its context is out of range")
    both = torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *signs])) * 2 - 1
    context = Context(
        header.counts, header.resolutions, header.longest, both.float().view(-1, PER_NODE), network
    )
    return colors, shapes, context


def _nodes_of_levels(grid: SeedGrid, resolutions: tuple[int, ...], longest: int) -> list[int]:
    return [num_nodes(grid, (resolution,), longest) for resolution in resolutions]


def _fraction(values: torch.Tensor) -> int:
    """The fewest bits of a fraction that hold all values.

    Raises:
        ValueError: if the format cannot hold them.
    """
    for bits in range(MOST_BITS + 1):
        scaled = values * 2**bits
        if bool((scaled == scaled.round()).all()):
            if bool((abs(scaled) > LARGEST_WEIGHT).any()):
                break
            return bits
    raise ValueError("weights of seeds' networks must be multiples of 2^-16 below 2^8")
