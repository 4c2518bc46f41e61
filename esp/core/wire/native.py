"""A mark for mypyc, which compiles a part of esp (docs/compiled.md). To the interpreter it means nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mypy_extensions import mypyc_attr
else:

    def mypyc_attr(**_: object):
        """Says that classes that are not compiled may inherit from the class."""
        return lambda cls: cls


__all__ = ["mypyc_attr"]
