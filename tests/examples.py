"""How many random examples a test tries: half of its number in each run of the suite, whose runs add up.

With CI=true hypothesis makes the same examples in each run, so that no chance decides; there it is a quarter.
ESP_TEST_EXAMPLES=20 tries twenty times its number instead; CONTRIBUTING.md has the whole command.
"""

from __future__ import annotations

import os

FACTOR = float(os.environ.get("ESP_TEST_EXAMPLES", "0.25" if os.environ.get("CI") else "0.5"))


def tries(number: int) -> int:
    """For `max_examples` in hypothesis' settings."""
    return max(1, round(number * FACTOR))
