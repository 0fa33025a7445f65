"""Declares torchvision's two operators, so that it can be imported beside a torch without CUDA.

Its binary wants CUDA's libraries; transformers' processor needs it imported, not run. For verl's environment.
"""

from __future__ import annotations

import torch

_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
if not hasattr(torch.ops.torchvision, "nms"):
    for _name in ("nms", "qnms"):
        _LIBRARY.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
