"""`python -m training.sft`: see train."""

from training.sft.train import main

if __name__ == "__main__":
    main()
