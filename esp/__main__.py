"""`python -m esp`, and the command `esp`."""

import sys


def main() -> None:
    """Runs the command line. Ctrl-C before a command handles it ends it as a shell expects, without a traceback."""
    try:
        from esp.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
