"""The same reinforcement learning on a cluster, by verl (Ray, vLLM, FSDP): what verl needs from us, and no more.

rows         parquet files in verl's columns
conversation one episode as one growing sequence of tokens, and what it came to (no verl needed)
reward       the custom reward function
tool         the segmenter as a tool; tool.yaml describes it
loop         the episode as verl's agent loop; agent.yaml registers it
grpo.yaml    what is changed in verl's own configuration; launch.sh starts it on one node or several

verl has its own environment: its versions of transformers and others are not ours. Installed there are also
this project (`pip install -e .`) and sam2; the commands run from the project's folder.
"""
