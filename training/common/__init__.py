"""What the commands of the training share."""
