"""A folder of a vision-language model that runs through transformers."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ibis_agent.errors import ModelError
from ibis_agent.policy.device import device_of, no_progress_bar, precision_for, run_error
from ibis_agent.policy.folder import QWEN25, PolicyFolder, look_into, read_json, wrong_tensors
from ibis_agent.policy.formats import COMPUTED, UNPACKED, method_of
from ibis_agent.policy.qwen25.source import Qwen25Folder, unpacked
from ibis_agent.policy.required_memory import check_memory

if TYPE_CHECKING:
    from ibis_agent.policy.generic.generic import GenericPolicy


class GenericFolder(Qwen25Folder):
    """See policy.find."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        super().__init__(folder)
        self.model_type = model_type_of(self.folder)
        self.kind = self.model_type

    def inspect(self) -> PolicyFolder:
        """See folder.look_into."""
        return look_into(self.folder, model_type=None, quantised=(UNPACKED, *COMPUTED))

    def check(self) -> None:
        """See contract.PolicySource."""
        self.inspect()
        self._known()

    def facts(self) -> dict[str, str]:
        """See contract.PolicySource."""
        found = self.inspect()
        why = (
            f"this is {self.model_type}"
            if self.model_type != QWEN25
            else f"without {found.stored_as} weights"
        )
        way = f"transformers' own processor and generate; the fast implementation is for Qwen2.5-VL, {why}"
        return {**super().facts(), "way": way + unpacked(found)}

    def open(self, device: str = "auto", precision: str = "auto") -> GenericPolicy:  # type: ignore[override]
        """Check this machine, then load; see policy.open."""
        card, found = self.card, self.inspect()
        self._known()
        if found.quantised:
            found.quantised.check(self.folder)
        if precision in ("int4", "fp8"):
            raise ModelError(
                f"{precision} needs an unquantised Qwen2.5-VL",
                value=found.stored_as if found.quantised else self.model_type,
                remedy="Choose another precision, or run the model on a server and choose that as the policy.",
            )
        device = device_of(device)
        precision = precision_for(found, device, precision, card.max_new_tokens)
        check_memory(found, precision, device, card.max_new_tokens)
        from ibis_agent.policy.generic.generic import GenericPolicy
        from ibis_agent.policy.generic.processor import Conversations

        chat = Conversations.load(self.folder, self.model_type)
        try:
            model = self._load(found, device, precision)
        except ModelError:
            raise
        except (MemoryError, RuntimeError) as error:
            raise run_error(error, self.folder) from error
        except Exception as error:  # the libraries raise many kinds of exceptions
            raise ModelError(
                "cannot be loaded",
                file=self.folder,
                value=f"{type(error).__name__}: {error}"[:200],
                remedy="Take config.json and the weights from the same model.",
            ) from error
        return GenericPolicy(model.eval().requires_grad_(False), chat, card, found, device, precision)

    def _known(self) -> None:
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

        if self.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
            import transformers

            raise ModelError(
                "is not a vision-language model supported by the installed transformers",
                file=self.folder / "config.json",
                value=f"model_type {self.model_type}, transformers {transformers.__version__}",
                remedy="Try a newer transformers, or run it on a server and choose that as the policy.",
            )

    def _load(self, found: PolicyFolder, device: str, precision: str) -> Any:
        from transformers import AutoConfig, AutoModelForImageTextToText

        from ibis_agent.policy.generic.generic import TYPES

        # By its class, so that a folder's own code is never run.
        values = {key: value for key, value in found.config.items() if key not in ("auto_map", "model_type")}
        config = AutoConfig.for_model(self.model_type, **values)
        # With accelerate, weights go to the GPU file by file; otherwise all pass through main memory.
        straight = device.startswith("cuda") and importlib.util.find_spec("accelerate") is not None
        with no_progress_bar():
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                found.folder,
                config=config,
                dtype=TYPES[precision],
                device_map={"": device} if straight else None,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        model, report = loaded
        bad = sorted(report["missing_keys"]) or sorted(
            str(each[0]) for each in report.get("mismatched_keys") or ()
        )
        if bad:  # transformers would use random weights instead
            raise wrong_tensors(found.folder, bad)
        return model if straight else model.to(device)


def model_type_of(folder: Path) -> str:
    """The model_type in config.json; empty if it cannot be read."""
    return str(_config_of(folder).get("model_type") or "")


def has_own_network(folder: Path) -> bool:
    """Whether our own Qwen2.5-VL network can run it."""
    config = _config_of(folder)
    return config.get("model_type") in (None, "", QWEN25) and method_of(config) not in COMPUTED


def _config_of(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / "config.json")
    except ModelError:
        return {}
