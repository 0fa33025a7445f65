"""The process that runs the models, what it needs to be installed, and the settings."""
