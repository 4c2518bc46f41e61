"""Marks for mypyc, which compiles modules of esp (docs/compiled.md). To the interpreter the marks mean nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from mypy_extensions import trait
else:
    _Class = TypeVar("_Class")

    def trait(cls: _Class) -> _Class:
        """Marks a class that may be a second base of compiled classes."""
        return cls


__all__ = ["trait"]
