"""Merge a LoRA adapter into its base: a policy folder for the Slicer module and `ibis-agent run`.

    python -m training.sft.merge runs/sft/adapter --base DIR --out policies/liver
    ibis-agent info policies/liver

Adapters of training.sft contain the model card of the resulting policy; for others, such as LLaMA-Factory's, the
base's card is used. Full fine-tuning needs no merging: its `model/` is already such a folder.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import ibis_agent.policy as policies
from ibis_agent.errors import InputError, ModelError
from ibis_agent.policy.card import CARD_NAME, load_card
from ibis_agent.policy.folder import PolicyFolder, read_header, read_json
from ibis_agent.policy.required_memory import free_bytes, gigabytes

from training.common.commands import command_parser, ending
from training.common.policy_folder import check_free, history_of, named, quietly, read_history, write_policy

_ADAPTER, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def merge(adapter: Path, base: Path, out: Path, name: str = "", any_base: bool = False) -> PolicyFolder:
    """Merge and write the folder `out`, completely or not at all.

    Merges in fp32 if memory allows, and stores in the base's precision.

    Args:
        name: of the new policy; empty: as the adapter's card says.
        any_base: accept a base with other weights than the adapter was trained on.

    Raises IbisError naming the file and the remedy.
    """
    _check_adapter(adapter)
    found = policies.trainable(base).inspect()
    base_name = load_card(base).name
    history = read_history(adapter)
    if history and not any_base:
        trained = history.get("base") or {}
        trained_on = trained.get("sha256")
        if trained_on != found.sha256:
            raise InputError(
                "the adapter was trained on other weights",
                file=base,
                value=found.sha256[:12],
                remedy=f"Give the folder of {trained.get('name')} ({str(trained_on)[:12]}), "
                "or --any-base if you know it is the same model.",
            )
    check_free(out)
    if (adapter / CARD_NAME).is_file():
        card = load_card(adapter)
        card = named(card, name or card.name, card.origin)
    else:
        settings = read_json(adapter / _ADAPTER)
        origin = (
            f"An adapter (LoRA of rank {settings.get('r')}) merged into {base_name} ({found.sha256[:12]})."
        )
        card = named(load_card(base), name, origin)
    model = _merged(adapter, found)
    return write_policy(
        model, found, out, card, history or history_of("adapter", found, base_name, adapter=adapter.name)
    )


def _check_adapter(adapter: Path) -> None:
    for file in (_ADAPTER, _WEIGHTS):
        if not (adapter / file).is_file():
            raise ModelError(
                f"is not an adapter: {file} is missing",
                file=adapter,
                remedy="Give the folder `adapter` made by training.sft.",
            )
    kind = read_json(adapter / _ADAPTER).get("peft_type")
    if kind != "LORA":
        raise ModelError("is not a LoRA adapter", file=adapter, value=kind, remedy="Only LoRA is merged.")
    read_header(adapter / _WEIGHTS)


def _merged(adapter: Path, base: PolicyFolder) -> Any:
    from peft import PeftModel

    needed, free = base.parameters * 4, free_bytes("cpu")
    precision = "fp32" if free is None or needed < 0.9 * free else "bf16"
    if precision == "bf16":
        print(f"merging in bf16: fp32 would need {gigabytes(needed)} of memory", file=sys.stderr)
    model = policies.trainable(base.folder).network(base, "cpu", precision)
    try:
        with quietly():
            adapted = PeftModel.from_pretrained(
                model, str(adapter), torch_device="cpu", local_files_only=True
            )
            return adapted.merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ModelError(
            f"does not fit its base: {str(error).strip().splitlines()[0][:300]}",
            file=adapter,
            remedy=f"Give the base it was trained on instead of {base.folder}.",
        ) from error


def main() -> None:
    parser = command_parser("sft.merge", __doc__)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--base", type=Path, required=True, help="the policy folder it was trained from")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--name", default="", help="of the policy, as shown in the module")
    parser.add_argument(
        "--any-base", action="store_true", help="do not check that the base is the one it was trained on"
    )
    args = parser.parse_args()
    with ending():
        made = merge(args.adapter, args.base, args.out, args.name, args.any_base)
    print(f"{made.folder}: {load_card(made.folder).name}, sha256 {made.sha256[:12]}")


if __name__ == "__main__":
    main()
