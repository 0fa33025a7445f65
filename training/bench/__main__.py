"""`python -m training.bench`: see steps."""

from training.bench.steps import main

if __name__ == "__main__":
    main()
