"""`python -m training.grpo`; what it does is in train."""

from training.grpo.train import main

if __name__ == "__main__":
    main()
