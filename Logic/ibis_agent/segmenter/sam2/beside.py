"""Work for a card in a thread beside another network's: on a stream of its own, so that neither waits for the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Made = TypeVar("Made")


def on_own_stream(
    work: Callable[[], Made],
    tensors_of: Callable[[Made], Any],
    device: torch.device,
    cuda: Any = torch.cuda,
) -> Made:
    """What `work` gives, computed on a stream of its own and finished when this returns.

    tensors_of: the tensors of it that other streams will read: their memory is not given to anyone else before.
    """
    common = cuda.current_stream(device)
    own = cuda.Stream(device)
    own.wait_stream(common)  # what the work reads was made there
    with cuda.stream(own):
        made = work()
    own.synchronize()  # this thread alone waits
    for tensor in tensors_of(made):
        tensor.record_stream(common)
    return made
