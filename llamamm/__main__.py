"""`python -m llamamm` is `llamamm`."""

from llamamm.cli.main import main

if __name__ == "__main__":
    main()
