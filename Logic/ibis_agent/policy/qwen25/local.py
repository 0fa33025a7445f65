"""Policies: picture and question in, text out.

`Policy` is what an Episode needs to know of one. `ScriptedPolicy` plays given replies; `LocalPolicy` runs a
Qwen2.5-VL folder on this machine. Prompts are in prompts, tokens in chat, the token loop in decoding, the
look at a folder before it is loaded in weights. Torch is imported when a LocalPolicy is loaded, not before.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ibis_agent.actions import reply_is_complete
from ibis_agent.errors import InputError, ModelError
from ibis_agent.policy.card import ModelCard, load_card
from ibis_agent.policy.contract import IsCancelled, OnText, Turn
from ibis_agent.policy.folder import PolicyFolder, look_into
from ibis_agent.policy.messages import build_messages, pictures_of
from ibis_agent.policy.required_memory import PRECISIONS, NotEnoughMemoryError, check_memory

if TYPE_CHECKING:
    from ibis_agent.policy.qwen25.chat import Chat
    from ibis_agent.policy.qwen25.decoding import Decoded, Decoder


class LocalPolicy:
    """A Qwen2.5-VL folder on this machine's CPU or CUDA device: greedy, streamed, cancellable.

    The text ends as soon as the action (or the answer of an ending reply) is closed. Nothing is fetched from
    a network, no pickle is opened and no code of the folder is run.
    """

    def __init__(
        self, model: Any, chat: Chat, card: ModelCard, identity: dict[str, str], device: str, precision: str
    ) -> None:
        from ibis_agent.policy.qwen25.decoding import Decoder

        self.model = model
        self.chat = chat
        self.card = card
        self.identity = identity
        self.device = device
        self.precision = precision
        self.last: Decoded | None = None
        """The last reply's tokens and times."""
        drafts = [chat.tokenizer.encode(text, add_special_tokens=False).ids for text in card.drafts]
        self._decoder: Decoder = Decoder(model, chat.decode, chat.stops, drafts)
        text = model.config.text_config
        self._longest = int(getattr(text, "max_position_embeddings", 0) or 2**31)

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], device: str = "auto", precision: str = "auto"
    ) -> LocalPolicy:
        """Check the folder and this machine, then load.

        Args:
            device: "auto" (CUDA where there is a device), "cpu", "cuda" or "cuda:1".
            precision: "fp32", "bf16", "fp16", "int4" (bitsandbytes NF4), or "auto": on CUDA bf16, or fp16 on
                cards without it; on a CPU fp32, or bf16 where only that fits.

        Raises ModelError, NotEnoughMemoryError (a ModelError), naming the file and the remedy.
        """
        card = load_card(folder)
        found = look_into(folder)
        device = _device(device)
        precision = _precision(found, device, precision, card.max_new_tokens)
        check_memory(found, precision, device, card.max_new_tokens)
        from ibis_agent.policy.qwen25.chat import Chat

        chat = Chat.load(folder, card)
        try:
            model = load_model(found, device, precision)
        except ModelError:
            raise
        except (MemoryError, RuntimeError) as error:
            raise _run_error(error, found.folder) from error
        except Exception as error:  # the libraries raise all kinds for files that do not fit together
            raise ModelError(
                f"cannot be loaded: {_first_line(error)}", file=folder, remedy="Download the folder again."
            ) from error
        identity = {"name": card.name, "sha256": found.sha256}
        return cls(model, chat, card, identity, device, precision)

    def forget(self) -> None:
        """Give back the memory of what is kept between turns; they only cost time again."""
        self._decoder.forget()

    def reply(self, turn: Turn, on_text: OnText | None = None, cancelled: IsCancelled | None = None) -> str:
        """The reply to one turn. Raises Cancelled, InputError, ModelError."""
        messages = build_messages(self.card, turn)
        request = self.chat.encode(messages, pictures_of(self.card, turn))
        room = self._longest - len(request.ids)
        if room < 1:
            raise InputError(
                "the question and its pictures are longer than this policy can read",
                value=f"{len(request.ids)} of {self._longest} tokens",
                remedy="Shorten the question, or use a smaller picture or less history.",
            )
        try:
            self.last = self._decoder.run(
                request, min(room, self.card.max_new_tokens), on_text, cancelled, reply_is_complete
            )
        except (MemoryError, RuntimeError) as error:
            raise _run_error(error, None) from error
        return self.last.text


def _device(device: str) -> str:
    torch = _torch()
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise InputError("unknown device", value=device, remedy='Choose "auto", "cpu" or "cuda".')
    if kind == "cuda" and (not torch.cuda.is_available() or int(number or 0) >= torch.cuda.device_count()):
        raise InputError(
            "this machine has no such CUDA device, or torch was installed without CUDA",
            value=device,
            remedy='Choose "cpu", or install a CUDA build of torch.',
        )
    return device


def _precision(found: PolicyFolder, device: str, precision: str, max_new_tokens: int) -> str:
    if precision != "auto":
        if precision not in PRECISIONS:
            raise InputError(
                "unknown precision", value=precision, remedy=f"Choose auto, {', '.join(PRECISIONS)}."
            )
        if precision == "int4":
            missing = [name for name in ("bitsandbytes", "accelerate") if not importlib.util.find_spec(name)]
            if missing:
                raise ModelError(
                    f"the precision int4 needs {' and '.join(missing)}",
                    remedy=f"pip install {' '.join(missing)}, or choose another precision.",
                )
        return precision
    if device.startswith("cuda"):
        return "bf16" if _torch().cuda.is_bf16_supported(including_emulation=False) else "fp16"
    try:
        check_memory(found, "fp32", device, max_new_tokens)
    except NotEnoughMemoryError:
        return "bf16"
    return "fp32"


def load_model(found: PolicyFolder, device: str, precision: str) -> Any:
    """The transformers model of a folder, frozen and in evaluation mode, on "cpu", "cuda" or "cuda:1".

    precision: "fp32", "bf16", "fp16" or "int4". Raises ModelError for weights that do not fit the configuration.
    """
    torch = _torch()
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    types = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    options: dict[str, Any] = {}
    if precision == "int4":
        from transformers import BitsAndBytesConfig

        compute = torch.bfloat16 if device == "cpu" or torch.cuda.is_bf16_supported() else torch.float16
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute
        )
        options["device_map"] = {"": device}
        types["int4"] = compute
    elif importlib.util.find_spec("accelerate"):
        options["device_map"] = {"": device}  # straight to the card, without a whole copy in main memory
    # The configuration by its class: a folder's own code is never looked for, whatever its files say.
    config = Qwen2_5_VLConfig.from_dict({k: v for k, v in found.config.items() if k != "auto_map"})
    loaded: Any  # with output_loading_info a pair, which the library's annotation does not say
    with no_progress_bar():
        loaded = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            found.folder,
            config=config,
            dtype=types[precision],
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing or report.get("mismatched_keys"):
        # transformers would go on with random numbers in their place.
        bad = missing or sorted(str(each[0]) for each in report["mismatched_keys"])
        raise ModelError(
            f"{len(bad)} tensors that the configuration asks for are missing or of another size",
            file=found.folder,
            value=bad[0],
            remedy="Take config.json and the weights from the same model.",
        )
    if not options:
        model.to(device)
    return model.eval().requires_grad_(False)


@contextlib.contextmanager
def no_progress_bar() -> Iterator[None]:
    """transformers' bar on stderr is not for the people who use this."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _run_error(error: Exception, folder: object) -> ModelError:
    """A failure of torch in words: out of memory, or something else."""
    text = _first_line(error)
    low = text.lower()
    if isinstance(error, MemoryError) or "out of memory" in low or "can't allocate memory" in low:
        return NotEnoughMemoryError(
            "there was not enough memory",
            value=text,
            remedy='Choose a lower precision such as "int4", a smaller picture, or less history.',
        )
    return ModelError(f"the model failed: {text}", file=None if folder is None else str(folder))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise ModelError(
            "torch is not installed",
            remedy="Install the models' software: make venv in the checkout, or Install in Slicer's panel.",
        ) from error
    return torch
