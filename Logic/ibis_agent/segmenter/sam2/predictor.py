"""The promptable segmenter: a picture embedded once, then clicks in, a mask out.

Drives the network of the sam2 package directly and gives what sam2's own image predictor gives, without
torchvision. Exactly the published prompt protocol: every click so far, the best low-resolution logits of the
turn before, several masks, the best score wins. Which network it is, architecture decides; runs through a
volume drive `Segmenter.model` themselves.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ibis_agent.actions import Click
from ibis_agent.errors import InputError, ModelError
from ibis_agent.segmenter.sam2 import architecture
from ibis_agent.segmenter.sam2.architecture import Architecture

DEMO = Path(__file__).parents[2] / "demo" / "segmenter" / "model.safetensors"
PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)
# The published predictor keeps the logits that it hands on within these bounds.
_LOGIT_BOUND = 32.0
_TORCH_ITSELF = 100_000_000  # bytes of code and buffers that come with the first picture
_PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": None}


@dataclass(frozen=True)
class Embedding:
    """What the network keeps of a picture. Tensors stay on the segmenter's device.

    Attributes:
        image: (1, C, S/16, S/16) features for the prompt decoder.
        high_resolution: (1, C/8, S/4, S/4) and (1, C/4, S/8, S/8), or empty for networks without them.
        height, width: of the picture, in pixels.
    """

    image: Tensor
    high_resolution: tuple[Tensor, ...]
    height: int
    width: int


@dataclass(frozen=True)
class Prediction:
    """A mask and what the next click needs of it.

    Attributes:
        mask: (H, W) bool, in the picture's own pixels.
        logits: (S/4, S/4) float32 within ±32, to be passed on as `previous_logits`.
        score: the network's own estimate of the mask's IoU.
        scores: (3,) float32, of all masks that it offered.
    """

    mask: np.ndarray
    logits: np.ndarray
    score: float
    scores: np.ndarray


class Segmenter:
    """A loaded SAM2, SAM2.1 or MedSAM2.

        segmenter = Segmenter.load("MedSAM2_latest.pt")
        embedding = segmenter.embed(rgb)
        first = segmenter.predict(embedding, [Click(0.4, 0.5)])
        clicks = [Click(0.4, 0.5), Click(0.7, 0.5, positive=False)]
        second = segmenter.predict(embedding, clicks, first.logits)

    Attributes:
        model: the SAM2Base, memory parts included, in evaluation mode.
        architecture: what was recognised.
        identity: "name" (the file's), "sha256" (of the file) and "architecture".
        image_size: side of the square that the network sees, in pixels.
        device: where it runs.
        precision: "fp32", or what CUDA computes in ("fp16" as published, "bf16").
    """

    def __init__(
        self,
        model: Any,
        architecture: Architecture,
        identity: dict[str, str],
        device: str | torch.device = "cpu",
        precision: str = "auto",
    ) -> None:
        self.device = _device(device)
        self.precision = _precision(precision, self.device)
        self.model = model.to(self.device).eval()
        self.architecture = architecture
        self.identity = identity
        self.image_size = architecture.image_size
        self._mean = torch.tensor(PIXEL_MEAN, device=self.device)[:, None, None]
        self._std = torch.tensor(PIXEL_STD, device=self.device)[:, None, None]

    @classmethod
    def load(
        cls,
        checkpoint: str | os.PathLike[str] | None = None,
        config: str | os.PathLike[str] | None = None,
        device: str = "auto",
        precision: str = "auto",
    ) -> Segmenter:
        """Load a checkpoint; None takes the demonstration segmenter of this package.

        Args:
            checkpoint: `.pt`, `.pth` or `.safetensors`.
            config: a name of `architecture.NAMES` or a YAML file, where the checkpoint does not tell.
            device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1".
            precision: "auto" (fp16 on CUDA as published, fp32 elsewhere), "fp32", "fp16", "bf16".

        Raises ModelError with file, value and remedy.
        """
        where = _device(device)
        _precision(precision, where)
        file = checkpoint_file(checkpoint)
        model, found = architecture.load(file, config)
        identity = {"name": file.name, "sha256": sha256_of(file), "architecture": found.name}
        return cls(model, found, identity, where, precision)

    def prepare(self, rgb: np.ndarray) -> Tensor:
        """An (H, W, 3) uint8 picture as the network takes it: (3, S, S) float32, resized and normalised."""
        rgb = np.asarray(rgb)
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or not rgb.size:
            raise InputError(
                "the segmenter takes (H, W, 3) pictures of 8 bits",
                value=f"{rgb.dtype} {rgb.shape}",
                remedy="Cut and window the slice first.",
            )
        picture = torch.from_numpy(np.array(rgb)).to(self.device).permute(2, 0, 1).float() / 255
        side = self.image_size
        if picture.shape[1:] != (side, side):
            # As sam2's predictor does it; antialias matters where a large picture is made small.
            picture = F.interpolate(
                picture[None], (side, side), mode="bilinear", align_corners=False, antialias=True
            )[0]
        return (picture - self._mean) / self._std

    @torch.inference_mode()
    def embed(self, rgb: np.ndarray) -> Embedding:
        """The embedding of an (H, W, 3) uint8 picture. Raises InputError; ModelError for lack of memory."""
        prepared = self.prepare(rgb)
        with self.computing():
            levels = self.model.forward_image(prepared[None])["backbone_fpn"]
            image = levels[-1]
            if self.model.directly_add_no_mem_embed:
                image = image + self.model.no_mem_embed.reshape(1, -1, 1, 1)
        high = tuple(levels[:-1]) if self.model.use_high_res_features_in_sam else ()
        return Embedding(image, high, rgb.shape[0], rgb.shape[1])

    @torch.inference_mode()
    def predict(
        self,
        embedding: Embedding,
        clicks: Sequence[Click],
        previous_logits: np.ndarray | None = None,
    ) -> Prediction:
        """The best of the masks that the network offers for all `clicks` so far.

        Args:
            embedding: of the picture, from `embed`.
            clicks: in the order in which they were made; a click lies on pixel int(x·W), int(y·H), clamped.
            previous_logits: `Prediction.logits` of the click before; None at the first.

        Raises InputError for no clicks or logits of another size, ModelError when the network fails.
        """
        return self.predict_many([embedding], [clicks], [previous_logits])[0]

    @torch.inference_mode()
    def predict_many(
        self,
        embeddings: Sequence[Embedding],
        clicks: Sequence[Sequence[Click]],
        previous_logits: Sequence[np.ndarray | None],
    ) -> list[Prediction]:
        """`predict` for several pictures or several states of one, in one pass through the decoder.

        All must have as many clicks as each other, and either all or none previous logits: with padding the
        network would see other prompts than alone. Raises what `predict` raises.
        """
        counts = {len(each) for each in clicks}
        if counts == {0}:
            raise InputError("the segmenter needs a click", remedy="Pass at least one click.")
        if len(counts) != 1 or len({each is None for each in previous_logits}) != 1:
            raise InputError("predictions made together need equally many clicks and logits")
        pairs = list(zip(clicks, embeddings, strict=True))
        points = torch.tensor([[_pixel(click, where) for click in each] for each, where in pairs])
        sizes = torch.tensor([[[each.width, each.height]] for each in embeddings])
        points = points.float() / sizes.float() * self.image_size
        labels = torch.tensor([[int(click.positive) for click in each] for each in clicks], dtype=torch.int32)
        with self.computing():
            sparse, dense = self.model.sam_prompt_encoder(
                points=(points.to(self.device), labels.to(self.device)),
                boxes=None,
                masks=self._mask_prompts(previous_logits),
            )
            low, scores, _, _ = self.model.sam_mask_decoder(
                image_embeddings=torch.cat([each.image for each in embeddings]),
                image_pe=self.model.sam_prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=True,
                repeat_image=False,
                high_res_features=[
                    torch.cat(level)
                    for level in zip(*(each.high_resolution for each in embeddings), strict=True)
                ],
            )
            scores = scores.float().cpu().numpy()
            if not np.isfinite(scores).all():
                raise ModelError(
                    "the segmenter computed something that is not a number",
                    value=f"{self.identity.get('name')} in {self.precision}",
                    remedy="Try precision fp32.",
                )
            return [
                _best(low[n : n + 1].float(), scores[n], embedding) for n, embedding in enumerate(embeddings)
            ]

    def describe(self) -> dict[str, Any]:
        """What this is, in plain values: for `ibis-agent info`."""
        found = self.architecture
        return {
            **self.identity,
            "image_size": found.image_size,
            "parameters": found.parameters,
            "device": str(self.device),
            "precision": self.precision,
            "memory_bytes": memory_estimate(found),
        }

    def _mask_prompts(self, logits: Sequence[np.ndarray | None]) -> Tensor | None:
        given = [each for each in logits if each is not None]
        side = self.image_size // 4
        for each in given:
            if each.shape != (side, side):
                raise InputError(
                    "the logits come from another segmenter",
                    value=f"{each.shape} instead of {(side, side)}",
                    remedy="Pass the logits of this segmenter's own prediction.",
                )
        if not given:
            return None
        return torch.from_numpy(np.stack(given).astype(np.float32))[:, None].to(self.device)

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Autocast on CUDA; what torch raises becomes a ModelError."""
        kind = _PRECISIONS[self.precision]
        try:
            with torch.autocast("cuda", kind) if kind is not None else contextlib.nullcontext():
                yield
        except torch.OutOfMemoryError as error:
            raise ModelError(
                "the segmenter does not fit into the memory that is free",
                value=f"about {memory_estimate(self.architecture) / 2**30:.1f} GiB needed",
                remedy="Close other programs that use the GPU, or choose the device cpu.",
            ) from error
        except RuntimeError as error:
            raise ModelError(
                "the segmenter failed", value=" ".join(str(error).split()), remedy="Try the device cpu."
            ) from error


def checkpoint_file(checkpoint: str | os.PathLike[str] | None) -> Path:
    """The path of a checkpoint; None is the demonstration segmenter's. Raises ModelError if it is absent."""
    if checkpoint is not None:
        return Path(checkpoint)
    if not DEMO.is_file():
        raise ModelError(
            "the demonstration segmenter is not in this installation",
            file=DEMO,
            remedy="Name the weights of a segmenter, or train one: python -m training.demo.train_segmenter.",
        )
    return DEMO


def memory_estimate(found: Architecture, bytes_each: int = 4) -> int:
    """Bytes that the weights and one picture take at the most, within a fifth: for telling before trying.

    The peak lies at the finest feature map, (S/4)² places: ten times the width of the encoder's first stage
    (input, normalised, twice the fourfold hidden layer) and three times the width of the feature pyramid.
    Measured on a CPU with sam2.1 tiny at 512 (0.37 GB) and 1024 (0.77 GB) and large (1.44 GB).
    """
    encoder = found.settings["image_encoder"]
    width, pyramid = int(encoder["trunk"]["embed_dim"]), int(encoder["neck"]["d_model"])
    peak = (found.image_size // 4) ** 2 * (10 * width + 3 * pyramid)
    return (found.parameters + peak) * bytes_each + _TORCH_ITSELF


def sha256_of(file: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _best(low: Tensor, scores: np.ndarray, embedding: Embedding) -> Prediction:
    """The winner of (1, 3, h, w) logits. Only it is brought to the picture's size."""
    best = int(np.argmax(scores))
    logits = low[:, best : best + 1]
    full = F.interpolate(logits, (embedding.height, embedding.width), mode="bilinear", align_corners=False)
    return Prediction(
        mask=(full[0, 0] > 0).cpu().numpy(),
        logits=logits[0, 0].clamp(-_LOGIT_BOUND, _LOGIT_BOUND).cpu().numpy(),
        score=float(scores[best]),
        scores=scores,
    )


def _pixel(click: Click, embedding: Embedding) -> tuple[int, int]:
    """(column, row) of a click, by the published rule: truncated, then clamped to the last pixel."""
    column, row = int(click.x * embedding.width), int(click.y * embedding.height)
    return min(column, embedding.width - 1), min(row, embedding.height - 1)


def _device(name: str | torch.device) -> torch.device:
    if isinstance(name, str) and name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError("there is no such device", value=name, remedy="Use auto, cpu or cuda.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError("CUDA is not available here", value=name, remedy="Use the device auto or cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelError("there is no such GPU", value=name, remedy=f"There are {torch.cuda.device_count()}.")
    return device


def _precision(name: str, device: torch.device) -> str:
    if name == "auto":
        return "fp16" if device.type == "cuda" else "fp32"
    if name not in _PRECISIONS:
        raise ModelError("there is no such precision", value=name, remedy="Use auto, fp32, fp16 or bf16.")
    return name if device.type == "cuda" else "fp32"
