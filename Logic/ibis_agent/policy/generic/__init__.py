"""Any vision-language model that transformers knows, through its own processor and `generate`."""
