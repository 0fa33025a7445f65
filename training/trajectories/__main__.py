"""`python -m training.trajectories`; what it does is in generate."""

from training.trajectories.generate import main

if __name__ == "__main__":
    main()
