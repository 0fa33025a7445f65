#!/usr/bin/env bash
# GRPO with verl on one or several nodes. Run it from the project's folder, in verl's own environment:
#
#   MODEL=policies/sft DATA=build/verl training/grpo/verl/launch.sh                       # one node, all its GPUs
#   MODEL=… DATA=… GPUS=1 training/grpo/verl/launch.sh data.train_batch_size=32          # one GPU
#
# For several nodes, run it on each of them, with the same folder on all; NODE_RANK 0 is the head:
#
#   NODES=4 NODE_RANK=0 HEAD=10.0.0.1 MODEL=… DATA=… training/grpo/verl/launch.sh
#   NODES=4 NODE_RANK=1 HEAD=10.0.0.1 training/grpo/verl/launch.sh                        # and 2, 3
#
# SEGMENTER is a checkpoint (empty: the one in tool.yaml, or the demo segmenter); the head passes it to all nodes.
# Further arguments override verl's configuration.
set -euo pipefail
cd "$(dirname "$0")/../../.."
NODES=${NODES:-1} NODE_RANK=${NODE_RANK:-0} PORT=${PORT:-6379} OUT=${OUT:-runs/verl}
export PYTHONPATH="$PWD/Logic:$PWD${PYTHONPATH:+:$PYTHONPATH}"
export VERL_USE_EXTERNAL_MODULES="training.grpo.verl.advantage${VERL_USE_EXTERNAL_MODULES:+,$VERL_USE_EXTERNAL_MODULES}"
set -- "+ray_kwargs.ray_init.runtime_env.env_vars.VERL_USE_EXTERNAL_MODULES='$VERL_USE_EXTERNAL_MODULES'" "$@"
if [ -n "${SEGMENTER:-}" ]; then
    SEGMENTER=$(realpath -e "$SEGMENTER")
    set -- "+ray_kwargs.ray_init.runtime_env.env_vars.IBIS_SEGMENTER='$SEGMENTER'" "$@"
fi

if [ "$NODES" -gt 1 ]; then
    : "${HEAD:?HEAD is the address of the node with NODE_RANK 0}"
    if [ "$NODE_RANK" -gt 0 ]; then
        exec ray start --address="$HEAD:$PORT" --block
    fi
fi

: "${MODEL:?MODEL is the folder of the policy to start from}" "${DATA:?DATA is the folder that training.grpo.verl.rows made}"
for file in "$MODEL/ibis_model.json" "$DATA/train.parquet" "$DATA/test.parquet"; do
    [ -f "$file" ] || { echo "$file is missing: MODEL must be a policy folder with its card, DATA a folder made by training.grpo.verl.rows with --held above 0" >&2; exit 1; }
done
# Check before Ray starts, rather than in a worker after everything is loaded.
python - "$MODEL" "${SEGMENTER:-}" <<'CHECK'
import sys
from pathlib import Path
import ibis_agent.segmenter as segmenters
import yaml
from ibis_agent.policy.card import load_card
from training.common.commands import ending
from training.common.policy_folder import check_picture_limits
from training.grpo.verl.settings import tool_settings
with ending():
    check_picture_limits(load_card(sys.argv[1]), Path(sys.argv[1]))
    for tool in yaml.safe_load(Path("training/grpo/verl/tool.yaml").read_text())["tools"]:
        settings = tool_settings(tool["config"], "training/grpo/verl/tool.yaml")
        segmenters.find(sys.argv[2] or settings.segmenter or None).inspect()
CHECK

if [ "$NODES" -gt 1 ]; then
    ray start --head --node-ip-address="$HEAD" --port="$PORT"
    trap 'ray stop' EXIT
    # Wait for the other nodes.
    until [ "$(python -c 'import ray; ray.init(address="auto", log_to_driver=False); print(len(ray.nodes()))' 2>/dev/null)" = "$NODES" ]; do
        sleep 5
    done
fi

GPUS=${GPUS:-$(nvidia-smi -L | wc -l)}
python -m verl.trainer.main_ppo --config-path "$PWD/training/grpo/verl" --config-name grpo \
    data.train_files="$DATA/train.parquet" data.val_files="$DATA/test.parquet" \
    actor_rollout_ref.model.path="$MODEL" \
    trainer.nnodes="$NODES" trainer.n_gpus_per_node="$GPUS" trainer.default_local_dir="$OUT" "$@"
