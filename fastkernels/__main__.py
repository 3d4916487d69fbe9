"""`python -m fastkernels` is the command `fastkernels`."""

from fastkernels.cli import main

if __name__ == "__main__":
    main()
