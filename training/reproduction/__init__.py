"""The paper's claim at demo size, by one command."""
