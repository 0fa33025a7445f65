"""`python -m training.phantoms`: see phantom."""

from training.phantoms.phantom import main

if __name__ == "__main__":
    main()
