from __future__ import annotations

import pytest

from esp.core.workers.supervisor import reason_of


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "ended by itself"),
        (3, "ended with exit code 3"),
        (-11, "was killed by SIGSEGV"),
        (-9, "was killed by SIGKILL (by somebody, or because memory ran out)"),
        (-64, "was killed by SIGRTMAX"),
        (-50, "was killed by signal 50"),
    ],
)
def test_the_end_of_a_process_in_words(code: int, words: str) -> None:
    assert reason_of(code) == words


def test_where_the_kernel_says_so_memory_is_the_reason() -> None:
    assert reason_of(-9, for_memory=True) == "was killed by SIGKILL (the system says that memory ran out)"
