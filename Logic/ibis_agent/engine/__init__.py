"""The worker process that holds the models, and the side that starts it."""
