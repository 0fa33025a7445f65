"""Reproduction of the paper's claim at demo size."""
