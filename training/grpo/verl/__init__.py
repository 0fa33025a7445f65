"""The same reinforcement learning on a cluster, by verl (Ray, vLLM, FSDP): what verl needs from us, and no more.

rows         parquet files in verl's columns
conversation one episode as one growing sequence of tokens, and what it came to (no verl needed)
reward       the custom reward function
tool         the segmenter as a tool; tool.yaml describes it
loop         the episode as verl's agent loop; agent.yaml registers it
grpo.yaml    what is changed in verl's own configuration; launch.sh starts it on one node or several

verl has its own environment: its versions of transformers and others are not ours. Installed there are also
this project (`pip install -e .`) and sam2; the commands run from the project's folder.

Checked against verl 0.9.1 on a CPU (Testing/Python/test_verl.py, in that environment): the configuration composes,
verl's dataset reads the rows, the reward is found, the agent loop and the tool run on recorded replies. For that,
without vLLM, `pip install --no-deps verl==0.9.1` and beside it hydra-core, pyarrow, pandas, ray, tensordict 0.10,
codetiming, transformers 5.10, fastapi, opentelemetry-api and what they ask for were enough. Not run: training,
vLLM, FSDP, Ray, more than one node, any GPU.
"""
