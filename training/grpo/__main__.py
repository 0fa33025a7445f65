"""`python -m training.grpo`: see train."""

from training.grpo.train import main

if __name__ == "__main__":
    main()
