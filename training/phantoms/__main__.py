"""`python -m training.phantoms`; what it does is in phantom."""

from training.phantoms.phantom import main

if __name__ == "__main__":
    main()
