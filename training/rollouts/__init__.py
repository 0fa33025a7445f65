"""The policy at work in training: what it is asked, token by token, and many of its episodes at a time."""
