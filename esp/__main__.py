"""`python -m esp`, and the command `esp`."""

# The needed part of `signal`. The module itself takes milliseconds to import, in which Ctrl-C would leave a traceback.
import _signal  # type: ignore[import-not-found]
import os
import sys


def main() -> None:
    """Runs the command line.

    Ctrl-C ends the process at once, as a shell expects, until a command has a handler of its own. Python's default is
    an exception in the middle of the code that runs. It gets lost where Python cannot raise one, and the process would
    go on.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: the next socket would get its number, and output for stdout or stderr would go there
            os.open(os.devnull, os.O_RDONLY if descriptor == 1 else os.O_RDWR)
    if sys.stdout is None:  # a write to it must fail, not vanish
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - for as long as the process runs
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:  # not if the parent process ignores it
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    try:
        import gc

        gc.set_threshold(50_000)  # what is imported stays: to look for garbage among it takes a fifth of the start
        from esp.quick import answers

        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # None if the shell has closed the stream
                # A key may have characters that the terminal's encoding lacks.
                stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        if answers(sys.argv[1:]):
            os._exit(0)  # all is written; to take the modules down takes a tenth of the time
        from esp.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)  # as output.INTERRUPTED


if __name__ == "__main__":
    main()
