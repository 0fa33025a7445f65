"""`python -m training.sft`; what it does is in train."""

from training.sft.train import main

if __name__ == "__main__":
    main()
