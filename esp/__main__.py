"""`python -m esp`."""

from esp.cli import main

if __name__ == "__main__":
    main()
