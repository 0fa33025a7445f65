"""`python -m training.reproduction`; what it does is in reproduce."""

from training.reproduction.reproduce import main

if __name__ == "__main__":
    main()
