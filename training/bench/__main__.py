"""`python -m training.bench`; what it does is in steps."""

from training.bench.steps import main

if __name__ == "__main__":
    main()
