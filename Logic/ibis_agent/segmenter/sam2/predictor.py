"""SAM2 as a promptable segmenter of pictures.

Drives the network of the sam2 package directly, with the same results as its image predictor but without torchvision.
Follows the published prompt protocol: all clicks so far, the best low-resolution logits of the previous turn, several
candidate masks, and the one with the best score.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Union

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ibis_agent.actions import Box, Click, Prompt
from ibis_agent.errors import InputError, ModelError
from ibis_agent.mask.masks import box_around
from ibis_agent.segmenter.contract import Abilities, Prediction
from ibis_agent.segmenter.embeddings import KeptEmbeddings, key_of
from ibis_agent.segmenter.sam2.architecture import Architecture
from ibis_agent.segmenter.sam2.beside import on_own_stream
from ibis_agent.segmenter.sam2.required_memory import memory_estimate

PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)
# The bounds of the logits that the published predictor passes on.
LOGIT_BOUND = 32.0
_PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": None}


@dataclass(frozen=True)
class Sam2Embedding:
    """The network's features of a picture.

    Attributes:
        levels: the feature pyramid, finest first: (1, C/8, S/4, S/4), (1, C/4, S/8, S/8), (1, C, S/16, S/16); only the
            last for networks that do not use the others.
        height, width: of the picture, in pixels.
    """

    levels: tuple[Tensor, ...]
    height: int
    width: int

    @property
    def nbytes(self) -> int:
        return sum(level.numel() * level.element_size() for level in self.levels)

    @property
    def on_device(self) -> bool:
        return self.levels[0].device.type != "cpu"

    def off_device(self) -> Sam2Embedding:
        return self.to(torch.device("cpu"), self.levels[0].dtype)

    def to(self, device: torch.device, dtype: torch.dtype) -> Sam2Embedding:
        """A copy; tensors that match already are shared."""
        return Sam2Embedding(tuple(level.to(device, dtype) for level in self.levels), self.height, self.width)


Mark = tuple[float, float, int]
"""(column, row, kind), see marks_of."""
_State = tuple[Sam2Embedding, Sequence[Prompt], Union[np.ndarray, None]]  # noqa: UP007 - evaluated by Python 3.9, too


class Sam2Predictor:
    """A loaded SAM2, SAM2.1 or MedSAM2.

        segmenter = segmenter.open("MedSAM2_latest.pt")
        embedding = segmenter.embed(rgb)
        first = segmenter.predict(embedding, [Click(0.4, 0.5)])
        clicks = [Click(0.4, 0.5), Click(0.7, 0.5, positive=False)]
        second = segmenter.predict(embedding, clicks, first.logits)

    Attributes:
        model: the SAM2Base with its memory parts, in evaluation mode.
        architecture: its architecture.
        identity: "name" and "sha256" of the file, "architecture", and "first_box" if that is set.
        image_size: side of the square picture that the network sees, in pixels.
        device: where it runs.
        precision: "fp32", or on CUDA "fp16" (as published) or "bf16".
        kept: the cache of embeddings.
        first_box: see segmenter.open.
    """

    can = Abilities(boxes=True, starting_mask=True)

    def __init__(
        self,
        model: Any,
        architecture: Architecture,
        identity: dict[str, str],
        device: str | torch.device = "cpu",
        precision: str = "auto",
        first_box: bool = False,
    ) -> None:
        self.device = device_of(device)
        self.precision = precision_on(precision, self.device)
        self.model = model.to(self.device).eval()
        self.architecture = architecture
        self.identity = {**identity, "first_box": "drawn"} if first_box else identity
        self.first_box = first_box
        self.image_size = architecture.image_size
        self.kept = KeptEmbeddings()
        self._positions: tuple[Tensor, ...] = ()
        self._places: Tensor | None = None
        self._mean = torch.tensor(PIXEL_MEAN, device=self.device)[:, None, None]
        self._std = torch.tensor(PIXEL_STD, device=self.device)[:, None, None]

    def prepare(self, rgb: np.ndarray) -> Tensor:
        """An (H, W, 3) uint8 picture → (3, S, S) float32, resized and normalised. Raises InputError."""
        rgb = np.asarray(rgb)
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or not rgb.size:
            raise InputError(
                "the segmenter needs 8-bit (H, W, 3) pictures",
                value=f"{rgb.dtype} {rgb.shape}",
                remedy="Cut and window the slice first.",
            )
        picture = torch.from_numpy(np.array(rgb)).to(self.device).permute(2, 0, 1).float() / 255
        side = self.image_size
        if picture.shape[1:] != (side, side):
            # As in sam2's predictor; antialias matters when a large picture is scaled down.
            picture = F.interpolate(
                picture[None], (side, side), mode="bilinear", align_corners=False, antialias=True
            )[0]
        return (picture - self._mean) / self._std

    def embed(self, rgb: np.ndarray) -> Sam2Embedding:
        """The embedding of an (H, W, 3) uint8 picture. Raises InputError, and ModelError if memory runs out."""
        found = self.kept.get(("whole", key_of(rgb)), lambda: self.encode(rgb))
        assert isinstance(found, Sam2Embedding)
        return found.to(self.device, torch.float32)

    def embed_beside(self, rgb: np.ndarray) -> Sam2Embedding:
        """See contract.PictureSegmenter: on a stream of its own."""
        if self.device.type != "cuda":
            return self.embed(rgb)
        return on_own_stream(lambda: self.embed(rgb), lambda made: made.levels, self.device)

    @torch.inference_mode()
    def encode(self, rgb: np.ndarray) -> Sam2Embedding:
        """`embed` without the cache."""
        prepared = self.prepare(rgb)
        with self.computing():
            out = self.model.forward_image(prepared[None])
        if not self._positions:
            self._positions = tuple(each.float().clone() for each in out["vision_pos_enc"])
        levels = out["backbone_fpn"] if self.model.use_high_res_features_in_sam else out["backbone_fpn"][-1:]
        levels = tuple(level.float().clone() for level in levels)
        return Sam2Embedding(levels, rgb.shape[0], rgb.shape[1])

    @property
    def positions(self) -> tuple[Tensor, ...]:
        """The position encodings of the levels, (1, C, H, W) each, the same for all pictures."""
        if not self._positions:
            self.encode(np.zeros((self.image_size, self.image_size, 3), np.uint8))
        return self._positions

    @property
    def places(self) -> Tensor:
        """(1, C, S/16, S/16): the position encodings of the mask decoder, the same for all pictures."""
        if self._places is None:
            with torch.inference_mode(), self.computing():
                self._places = self.model.sam_prompt_encoder.get_dense_pe()
        return self._places

    def without_memory(self, embedding: Sam2Embedding) -> Tensor:
        """(1, C, S/16, S/16): the coarsest level as input of the mask decoder without memory."""
        return embedding.levels[-1] + self.model.no_mem_embed.reshape(1, -1, 1, 1)

    def fine(self, embedding: Sam2Embedding) -> list[Tensor]:
        """The finer levels, for mask decoders that use them."""
        return list(embedding.levels[:-1])

    @torch.inference_mode()
    def predict(
        self,
        embedding: Sam2Embedding,
        clicks: Sequence[Prompt],
        previous_logits: np.ndarray | None = None,
    ) -> Prediction:
        """The best candidate mask for all prompts so far.

        Args:
            embedding: of the picture, from `embed`.
            clicks: in order; a click is on pixel int(x·W), int(y·H), clamped.
            previous_logits: `Prediction.logits` before the last prompt; None for the first.

        Raises InputError without prompts or for logits of another size, and ModelError if the network fails.
        """
        return self.predict_many([embedding], [clicks], [previous_logits])[0]

    def box_after(
        self, prompts: Sequence[Prompt], previous_logits: np.ndarray | None, mask: np.ndarray
    ) -> Box | None:
        """The box that `first_box` adds around the mask of a single first click; otherwise None."""
        alone = len(prompts) == 1 and isinstance(prompts[0], Click) and prompts[0].positive
        return box_around(mask) if self.first_box and alone and previous_logits is None else None

    @torch.inference_mode()
    def started(self, mask: np.ndarray) -> Prediction:
        """An (H, W) bool mask as a mask prompt for the next click: logits of ±10, as in sam2."""
        side = self.image_size // 4
        given = torch.from_numpy(np.array(mask, dtype=np.float32))[None, None] * 20 - 10
        logits = F.interpolate(given, (side, side), mode="bilinear", align_corners=False, antialias=True)
        return Prediction(np.array(mask, dtype=bool), logits[0, 0].numpy(), 1.0, np.ones(1, np.float32))

    @torch.inference_mode()
    def predict_many(
        self,
        embeddings: Sequence[Sam2Embedding],
        clicks: Sequence[Sequence[Prompt]],
        previous_logits: Sequence[np.ndarray | None],
    ) -> list[Prediction]:
        """`predict` for several pictures, or several states of one; similar ones are batched in the decoder.

        A batch has the same number of points, and a box or previous logits for all or none, because padding would
        change the prompts. Raises as `predict`.
        """
        asked = list(zip(embeddings, clicks, previous_logits, strict=True))
        found = self._predict_all(asked)
        boxes = {n: self.box_after(asked[n][1], asked[n][2], each.mask) for n, each in enumerate(found)}
        again = [n for n, box in boxes.items() if box is not None]
        boxed = [(asked[n][0], [box, *asked[n][1]], None) for n, box in boxes.items() if box is not None]
        for n, each in zip(again, self._predict_all(boxed), strict=True):
            found[n] = each
        return found

    def _predict_all(self, asked: Sequence[_State]) -> list[Prediction]:
        if any(not prompts for _, prompts, _ in asked):
            raise InputError("the segmenter needs a click", remedy="Pass at least one click.")
        alike: dict[tuple[int, bool, bool], dict[int, list[Mark]]] = {}
        for n, (where, prompts, logits) in enumerate(asked):
            marks = marks_of(prompts, where.height, where.width)
            alike.setdefault((len(marks), several(marks), logits is None), {})[n] = marks
        found: dict[int, Prediction] = {}
        for group in alike.values():
            made = self._together([asked[n] for n in group], list(group.values()))
            found.update(zip(group, made, strict=True))
        return [found[n] for n in range(len(asked))]

    def _together(self, asked: Sequence[_State], marks: Sequence[Sequence[Mark]]) -> list[Prediction]:
        """One pass through the decoder for similar states. marks: of each, see marks_of."""
        embeddings = [embedding for embedding, _, _ in asked]
        points = torch.tensor([[place[:2] for place in each] for each in marks], dtype=torch.float32)
        sizes = torch.tensor([[[each.width, each.height]] for each in embeddings])
        points = points / sizes.float() * self.image_size
        labels = torch.tensor([[kind for _, _, kind in each] for each in marks], dtype=torch.int32)
        with self.computing():
            images = [(self._seen(each), self.fine(each)) for each in embeddings]
            sparse, dense = self.model.sam_prompt_encoder(
                points=(points.to(self.device), labels.to(self.device)),
                boxes=None,
                masks=self._mask_prompts([logits for _, _, logits in asked]),
            )
            low, scores, _, _ = self.model.sam_mask_decoder(
                image_embeddings=torch.cat([seen for seen, _ in images]),
                image_pe=self.places,
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=several(marks[0]),
                repeat_image=False,
                high_res_features=[
                    torch.cat(level) for level in zip(*(fine for _, fine in images), strict=True)
                ],
            )
            scores = scores.float().cpu().numpy()
            if not np.isfinite(scores).all():
                raise ModelError(
                    "the segmenter computed NaN or infinite values",
                    value=f"{self.identity.get('name')} in {self.precision}",
                    remedy="Try precision fp32.",
                )
            return [
                _best(low[n : n + 1].float(), scores[n], embedding) for n, embedding in enumerate(embeddings)
            ]

    def _seen(self, embedding: Sam2Embedding) -> Tensor:
        added = self.model.directly_add_no_mem_embed
        return self.without_memory(embedding) if added else embedding.levels[-1]

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
        """Autocast on CUDA; errors of torch become ModelError."""
        kind = _PRECISIONS[self.precision]
        try:
            with torch.autocast("cuda", kind) if kind is not None else contextlib.nullcontext():
                yield
        except torch.OutOfMemoryError as error:
            raise ModelError(
                "the segmenter does not fit into the free memory",
                value=f"about {memory_estimate(self.architecture) / 2**30:.1f} GiB needed",
                remedy="Close other programs that use the GPU, or choose the device cpu.",
            ) from error
        except RuntimeError as error:
            raise ModelError(
                "the segmenter failed", value=" ".join(str(error).split()), remedy="Try the device cpu."
            ) from error


def _best(low: Tensor, scores: np.ndarray, embedding: Sam2Embedding) -> Prediction:
    """The candidate with the best score, of (1, 3, h, w) logits; only this one is scaled to the picture."""
    best = int(np.argmax(scores))
    logits = low[:, best : best + 1]
    full = F.interpolate(logits, (embedding.height, embedding.width), mode="bilinear", align_corners=False)
    return Prediction(
        mask=(full[0, 0] > 0).cpu().numpy(),
        logits=logits[0, 0].clamp(-LOGIT_BOUND, LOGIT_BOUND).cpu().numpy(),
        score=float(scores[best]),
        scores=scores,
    )


def marks_of(prompts: Sequence[Prompt], height: int, width: int) -> list[Mark]:
    """(column, row, kind) of each point for sam2's prompt encoder; kinds 0 and 1 are clicks.

    By the published rule a click's pixel is truncated, then clamped to the last one. A box becomes its upper left (2)
    and lower right (3) corner; it comes before all clicks and replaces earlier prompts.
    """
    boxes = [n for n, each in enumerate(prompts) if isinstance(each, Box)]
    marks: list[Mark] = []
    for prompt in prompts[boxes[-1] if boxes else 0 :]:
        if isinstance(prompt, Box):
            marks += [
                (prompt.x0 * width, prompt.y0 * height, 2),
                (prompt.x1 * width, prompt.y1 * height, 3),
            ]
        elif isinstance(prompt, Click):
            row, column = prompt.pixel((height, width))
            marks.append((column, row, int(prompt.positive)))
    return marks


def several(marks: Sequence[Mark]) -> bool:
    """Whether to ask for several candidate masks: not with a box, which is hardly ambiguous."""
    return not any(kind > 1 for _, _, kind in marks)


def device_of(name: str | torch.device) -> torch.device:
    """The device of a name or "auto". Raises ModelError if it does not exist."""
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


def precision_on(name: str, device: torch.device) -> str:
    """Resolve "auto" for a device; always "fp32" off CUDA. Raises ModelError."""
    if name == "auto":
        return "fp16" if device.type == "cuda" else "fp32"
    if name not in _PRECISIONS:
        raise ModelError("there is no such precision", value=name, remedy="Use auto, fp32, fp16 or bf16.")
    return name if device.type == "cuda" else "fp32"
