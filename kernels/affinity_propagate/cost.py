"""Which way to propagate maps: with the affinity summed up while the model runs, or streaming afterwards.

Counted, not timed: operations and bytes of both ways, from the shapes alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Form = Literal["accumulated", "streaming"]

#: Operations of the matrix unit (bf16) in the time of moving one byte, by the data sheet of an H100 SXM:
#: 989 TFLOP/s and 3.35 TB/s.
FLOPS_PER_BYTE = 295.0
#: Operations of the matrix unit in the time of one exponential: 4096 and 16 a clock on Hopper.
FLOPS_PER_EXPONENTIAL = 256.0
#: An affinity larger than this is not accumulated, whatever it would save.
MOST_MEMORY = 1 << 30


@dataclass(frozen=True)
class Problem:
    """What is to be propagated.

    Attributes:
        batch: B.
        heads: H.
        tokens: T, class tokens and patches.
        class_tokens: C.
        channels: maps that are propagated, for each image.
        layers: L, whose attention is summed.
        head_dim: d.
        itemsize: bytes of a query's element.
        uses: how often maps are propagated along the same affinity.
    """

    batch: int
    heads: int
    tokens: int
    class_tokens: int
    channels: int
    layers: int
    head_dim: int
    itemsize: int
    uses: int = 1

    @property
    def patches(self) -> int:
        """N."""
        return self.tokens - self.class_tokens


@dataclass(frozen=True)
class Cost:
    """What one way costs beside the attention that the model computes anyway.

    Attributes:
        flops: of the matrix unit, exponentials converted.
        bytes: moved to and from memory.
        memory: bytes that are held from layer to layer.
    """

    flops: float
    bytes: float
    memory: float

    @property
    def time(self) -> float:
        """In operations of the matrix unit: the larger of computing and moving."""
        return max(self.flops, self.bytes * FLOPS_PER_BYTE)


def accumulated_cost(problem: Problem) -> Cost:
    """Each layer adds its head mean to the affinity (B, N, N); each use is one matrix product with it."""
    p = problem
    pairs = p.batch * p.patches**2
    layer = p.heads * pairs * (2 * p.head_dim + FLOPS_PER_EXPONENTIAL)
    heads = 2 * p.batch * p.heads * p.tokens * p.head_dim * p.itemsize
    return Cost(
        # float32, so TF32 at best: half the rate
        flops=p.layers * layer + p.uses * 2 * 2 * pairs * p.channels,
        bytes=p.layers * (2 * 4 * pairs + heads) + (1 + p.uses) * 4 * pairs,
        memory=4 * pairs,
    )


def streaming_cost(problem: Problem) -> Cost:
    """Queries and keys are kept; each use forms all layers' attention again, and keeps none."""
    p = problem
    pairs = p.batch * p.heads * p.patches * p.tokens
    passes, width = _channel_blocks(p.channels)
    layer = pairs * (2 * p.head_dim + FLOPS_PER_EXPONENTIAL + 2 * 2 * width)
    heads = p.batch * p.heads * p.tokens * p.head_dim * p.itemsize
    moved = 2 * heads + 2 * 4 * p.batch * p.channels * p.patches
    return Cost(
        flops=p.uses * p.layers * passes * layer,
        bytes=p.uses * p.layers * passes * moved,
        # values too: they lie in the same tensor
        memory=3 * p.layers * heads,
    )


def choose_form(problem: Problem, *, most_memory: float = MOST_MEMORY) -> Form:
    """The faster of the two, of those whose memory is within bounds; the smaller one where neither is."""
    accumulated, streaming = accumulated_cost(problem), streaming_cost(problem)
    if max(accumulated.memory, streaming.memory) > most_memory:
        return "accumulated" if accumulated.memory <= streaming.memory else "streaming"
    return "accumulated" if accumulated.time <= streaming.time else "streaming"


def _channel_blocks(channels: int) -> tuple[int, int]:
    """How many blocks of maps, and how wide each is, as the kernel takes them."""
    width = min(64, max(16, 1 << (channels - 1).bit_length()))
    return -(-channels // width), width
