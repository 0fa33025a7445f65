"""`python -m training.reproduction`: see reproduce."""

from training.reproduction.reproduce import main

if __name__ == "__main__":
    main()
