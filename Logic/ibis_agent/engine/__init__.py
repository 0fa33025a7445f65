"""The worker process that runs the models, and the client that starts it."""
