"""Policies: what they are asked, what they expect of their pictures and prompts, and one package a kind."""
