"""The process that runs the models, installing its packages, and the settings."""
