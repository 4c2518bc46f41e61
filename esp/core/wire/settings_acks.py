"""The SETTINGS that esp has sent and the peer has not acknowledged (RFC 9113, section 6.5.3)."""

from __future__ import annotations


class SettingsAcks:
    """Acknowledgements that the peer owes, and since when. Times are on the `monotonic` clock."""

    __slots__ = ("_due", "_since")

    def __init__(self) -> None:
        self._due = 0
        self._since = 0.0

    @property
    def is_none_due(self) -> bool:
        """Whether the peer has taken over all settings."""
        return not self._due

    def sent(self, now: float) -> None:
        """SETTINGS leave."""
        if not self._due:
            self._since = now
        self._due += 1

    def came(self, now: float) -> bool:
        """An acknowledgement has come; False when none was due."""
        if not self._due:
            return False
        self._due -= 1
        self._since = now
        return True

    def excuse(self, now: float) -> None:
        """The time up to `now` does not count: the acknowledgement may be among bytes that esp has not read."""
        self._since = now

    def are_late(self, seconds: float, now: float) -> bool:
        """Whether the peer has owed an acknowledgement for more than `seconds`."""
        return self._due > 0 and now - self._since > seconds
