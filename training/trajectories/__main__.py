"""`python -m training.trajectories`: see generate."""

from training.trajectories.generate import main

if __name__ == "__main__":
    main()
