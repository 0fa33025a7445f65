"""The same reinforcement learning on a cluster, by verl (Ray, vLLM, FSDP): what verl needs from us, and no more.

rows         parquet files in verl's columns
player       one episode, reply by reply (no verl needed)
reward       the custom reward function
tool         the segmenter as a tool; tool.yaml describes it
shared_segmenter  segmenters that all workers share: Ray actors, batched (no verl needed)
loop         the episode as verl's agent loop; agent.yaml registers it
coding       what a turn earned and its state, in the numbers that reach an estimator (no verl needed)
advantage    the laptop's credit as verl's advantage estimator
grpo.yaml    what is changed in verl's own configuration; launch.sh starts it on one node or several

verl has its own environment (requirements.txt, requirements.lock): its versions of transformers and others are not
ours. Installed there are also this project (`pip install -e .`) and sam2; the commands run from the project's
folder. What was run of it without a GPU, and what was not: training/README.md.
"""
