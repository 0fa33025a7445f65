"""Passing one fixed-size block of tokens through the language model, on CUDA as a captured graph.

A CUDA graph is a recorded sequence of kernels that one call starts. Without it, the 28 layers of a 7B model spend more
time on kernel launches than on computing. What changes between passes (tokens, memory slots, positions) is copied into
buffers that the graph reads. Works without triton, and so on Windows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ibis_agent.policy.qwen25.compiling import compiled_layer, is_faster
from ibis_agent.policy.qwen25.network import Check, Memory, Network, Step, rounds_of
from ibis_agent.policy.qwen25.packed_layers import FourBit

BLOCK = 8
# Up to this many rows bitsandbytes multiplies with packed weights; for more it unpacks them first.
_BLOCK_OF_FOUR_BIT = 7
# Memory for keys and values grows in steps of this many tokens. With graphs, each step needs a new graph (three eager
# passes), while attending to 2048 unused keys reads 0.1 GB more for a 7B model (computed).
_STEP_OF_GRAPHS = 2048
_STEP = 512


class Blocks:
    """Runs blocks of one network, and keeps the graphs captured for one memory."""

    def __init__(
        self,
        network: Network,
        capture: bool | None = None,
        fixed: bool | None = None,
        layer: Step | None = None,
    ) -> None:
        """
        capture: use CUDA graphs; default: on CUDA. fixed: use fixed shapes, as graphs need them; default: as capture.
        layer: a compiled layer, used if it is faster; default: see compiling.
        """
        self._network = network
        packed = isinstance(network.language.layers[0].qkv, FourBit)
        self.size = _BLOCK_OF_FOUR_BIT if packed else BLOCK
        self._capture = network.device.type == "cuda" if capture is None else capture
        self._fixed = self._capture if fixed is None else fixed
        self._layer = layer or compiled_layer(network)
        self.step = _STEP_OF_GRAPHS if self._fixed else _STEP
        """The memory for keys and values grows in steps of this many tokens."""
        self._memory: Memory | None = None
        self._passes: dict[int, _Pass] = {}

    def forget(self) -> None:
        """Drop the captured graphs and their memory."""
        self._passes.clear()
        self._memory = None

    def run(self, memory: Memory, ids: Sequence[int], ahead: int, room: int, check: Check) -> Tensor:
        """(size, V) logits after each of up to `size` tokens that follow those in the memory.

        Args:
            ahead: a token's rotary position minus its slot in the memory.
            room: the most tokens that the memory will contain in this reply, including this block.
            check: called before every layer, or before the graph.

        A shorter block is padded with its last token; the next block overwrites the padding in the memory before it is
        read.
        """
        if memory is not self._memory:
            self.forget()
            self._memory = memory
        given = torch.tensor([*ids, *[ids[-1]] * (self.size - len(ids))])
        places = torch.arange(memory.length, memory.length + self.size)
        width = min(rounds_of(room, self.step), memory.capacity) if self._fixed else memory.length + self.size
        if not self._fixed:
            return _forward(self._network, given, places, places + ahead, memory, width, check)
        check()
        inputs = given, places, places + ahead
        if width not in self._passes:
            self._passes[width] = self._made(memory, width, inputs)
        return self._passes[width](*inputs)

    def _made(self, memory: Memory, width: int, inputs: tuple[Tensor, ...]) -> _Pass:
        """A pass for this width, compiled if that is faster."""
        ways = [_Pass(self._network, memory, self.size, width, self._capture)]

        def compiled() -> Callable[[], Tensor]:
            ways.append(_Pass(self._network, memory, self.size, width, self._capture, self._layer))
            return lambda: ways[1](*inputs)

        if self._layer is not None:
            if is_faster(compiled, lambda: ways[0](*inputs), self._network.device):
                return ways[1]
            self._layer = None
        return ways[0]


class _Pass:
    """A pass with fixed input buffers, captured as a graph or computed each time."""

    def __init__(
        self,
        network: Network,
        memory: Memory,
        size: int,
        width: int,
        capture: bool,
        layer: Step | None = None,
    ) -> None:
        device = network.device
        ids, places, positions = (torch.zeros(size, dtype=torch.long, device=device) for _ in range(3))
        places.copy_(torch.arange(memory.length, memory.length + size))
        self._buffers = ids, places, positions
        self._compute = lambda: _forward(network, ids, places, positions, memory, width, _nothing, layer)
        self._graph: torch.cuda.CUDAGraph | None = None
        if capture:
            apart = torch.cuda.Stream()
            apart.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(apart):
                for _ in range(2):  # libraries choose kernels and allocate memory at the first calls
                    self._compute()
            torch.cuda.current_stream().wait_stream(apart)
            self._graph = torch.cuda.CUDAGraph()
            # The segmenter's thread may allocate memory meanwhile, which must not abort the capture.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._logits = self._compute()

    def __call__(self, *inputs: Tensor) -> Tensor:
        for buffer, given in zip(self._buffers, inputs, strict=True):
            buffer.copy_(given, non_blocking=True)
        if self._graph is None:
            return self._compute()
        self._graph.replay()
        return self._logits


def _forward(
    network: Network,
    ids: Tensor,
    places: Tensor,
    positions: Tensor,
    memory: Memory,
    width: int,
    check: Check,
    layer: Step | None = None,
) -> Tensor:
    language, device = network.language, network.device
    ids, places, positions = ids.to(device), places.to(device), positions.to(device)
    mask = torch.arange(width, device=device) <= places[:, None]
    rotation = language.rotation(positions.expand(3, -1))
    return language.logits(language.block(ids, rotation, places, memory, mask, check, layer))


def _nothing() -> None:
    pass
