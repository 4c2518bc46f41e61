"""`esp version`: the version of esp, and of what it runs on."""

from __future__ import annotations

from esp import __version__, build
from esp.commands.output import Format, write, write_json


def run(output: Format) -> None:
    """Prints the version.

    Raises:
        CommandError: stdout cannot be written.
    """
    if output is Format.TABLE:
        write(f"esp {__version__} ({build()})")
        return
    import platform
    import re
    from importlib.metadata import PackageNotFoundError, requires, version

    versions: dict[str, str | None] = {}
    for line in requires("etcd-sharding-proxy") or ():
        if "extra ==" not in line:
            name = re.split(r"[^\w.-]", line, maxsplit=1)[0]
            try:
                versions[name] = version(name)
            except PackageNotFoundError:
                versions[name] = None  # such as uvloop, which not every platform has
    write_json(
        {
            "version": __version__,
            "build": build(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "dependencies": versions,
        }
    )
