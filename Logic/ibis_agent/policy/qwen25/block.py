"""One block of tokens through the language model: always of one size, on CUDA as a captured graph.

A graph is a recorded sequence of kernels, started by one call: on a card the 28 layers of a 7B otherwise cost
more time for starting kernels than for computing. What changes between passes (tokens, their places, their
positions) lies in buffers that the graph reads. Nothing here needs triton, so it works on Windows too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ibis_agent.policy.qwen25.compiling import compiled_layer, is_faster
from ibis_agent.policy.qwen25.network import Check, Memory, Network, Step, rounds_of
from ibis_agent.policy.qwen25.packing import FourBit

BLOCK = 8
# bitsandbytes multiplies up to so many rows with packed weights; for more it unpacks them first.
_BLOCK_OF_FOUR_BIT = 7
# Keys and values that a graph looks at, and memory for them, in steps: a conversation that grows past one costs a new
# graph (three passes in eager mode), where looking at 2048 keys too many reads 0.1 GB more of a 7B (computed).
_STEP_OF_GRAPHS = 2048
_STEP = 512


class Blocks:
    """Runs blocks of one network; keeps what was captured for one memory."""

    def __init__(
        self,
        network: Network,
        capture: bool | None = None,
        fixed: bool | None = None,
        layer: Step | None = None,
    ) -> None:
        """capture: as CUDA graphs (where there is CUDA). fixed: shapes as a graph needs them (where captured).

        layer: a compiled layer, taken where it wins (see compiling; where one was asked for).
        """
        self._network = network
        packed = isinstance(network.language.layers[0].qkv, FourBit)
        self.size = _BLOCK_OF_FOUR_BIT if packed else BLOCK
        self._capture = network.device.type == "cuda" if capture is None else capture
        self._fixed = self._capture if fixed is None else fixed
        self._layer = layer or compiled_layer(network)
        self.step = _STEP_OF_GRAPHS if self._fixed else _STEP
        """The memory for keys and values is taken in steps of so many tokens."""
        self._memory: Memory | None = None
        self._passes: dict[int, _Pass] = {}

    def forget(self) -> None:
        """Drop what was captured, and with it the memory that it holds."""
        self._passes.clear()
        self._memory = None

    def run(self, memory: Memory, ids: Sequence[int], ahead: int, room: int, check: Check) -> Tensor:
        """(size, V) logits after each of up to `size` tokens that stand behind what is in the memory.

        Args:
            ahead: how much higher than its place a token's position is.
            room: how many tokens the memory may come to hold in this reply, this block included.

        Places behind the last token are filled up; what they leave in the memory is overwritten by the next
        block before anything looks at it. `check` is called before every layer, or before the graph.
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
        """A pass for this width, compiled where that wins."""
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
    """A pass whose inputs and result lie in buffers; captured, or computed anew every time."""

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
                for _ in range(2):  # libraries choose their kernels and take their memory at the first calls
                    self._compute()
            torch.cuda.current_stream().wait_stream(apart)
            self._graph = torch.cuda.CUDAGraph()
            # The segmenter may take memory in its thread meanwhile, which must not end the capture.
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
