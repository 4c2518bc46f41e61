"""The files of TLS that a config names, before any of them is read.

The config knows only these, so that commands which open no connection need not load TLS.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


class TlsFileError(OSError):
    """A file of TLS that cannot be used; the text is a clause with the path, the fault and the cure.

    Attributes:
        path: the file that is at fault.
    """

    def __init__(self, path: Path, fault: str) -> None:
        super().__init__(f"{path} {fault}")
        self.path = path


@dataclass(frozen=True, slots=True)
class Files:
    """The files of one end of TLS connections.

    Attributes:
        cert: this end's certificate, with the rest of its chain behind it; None for none.
        key: the certificate's private key; None if there is no certificate, or if the key is in the same file.
        ca: the CAs of the other end's certificate. With None, a client takes the system's, and a server asks for no
            certificate.
    """

    cert: Path | None = None
    key: Path | None = None
    ca: Path | None = None

    def paths(self) -> list[Path]:
        """All files that there are."""
        return [path for path in (self.cert, self.key, self.ca) if path is not None]
