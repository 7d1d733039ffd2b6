"""`python -m bimact` is the `bimact` command."""

from bimact.cli import main

if __name__ == "__main__":
    main()
