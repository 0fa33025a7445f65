"""GRPO on a cluster with verl (Ray, vLLM, FSDP): the parts that verl needs from this project.

rows              parquet files in verl's columns
player            one episode, reply by reply (does not need verl)
reward            the custom reward function
tool              the segmenter as a tool; described by tool.yaml
shared_segmenter  segmenters shared by all workers: Ray actors that answer in batches (does not need verl)
loop              the episode as verl's agent loop; registered by agent.yaml
settings          what tool.yaml may contain, checked (does not need verl)
coding            a turn's return and state, encoded in the numbers that reach an estimator (does not need verl)
advantage         the advantages of training.grpo.credit as verl's estimator
grpo.yaml         overrides of verl's own configuration; launch.sh starts it on one or several nodes

verl has its own environment (requirements.txt, requirements.lock), because it needs other versions of transformers
and others. Install this project (`pip install -e .`) and sam2 there too; run the commands from the project's folder.
training/README.md says which parts were run without a GPU, and which were not.
"""
