"""A policy on a server: any that speaks the OpenAI-compatible chat API with pictures."""
