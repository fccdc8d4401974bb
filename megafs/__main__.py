"""`python -m megafs` is the `megafs` command."""

from megafs.cli.main import main

if __name__ == "__main__":
    main()
