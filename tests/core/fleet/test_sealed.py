from __future__ import annotations

import pytest

from esp.core.fleet import sealed
from esp.core.fleet.sealed import UnsealedError

SECRET = b"s" * 32


def test_a_question_and_its_answer() -> None:
    question = sealed.question(SECRET, b"what?")
    assert sealed.asked(SECRET, question) == b"what?"
    answer = sealed.answer(SECRET, question, b"that")
    assert sealed.answered(SECRET, question, answer) == b"that"
    assert SECRET not in question + answer


def test_no_two_questions_are_the_same() -> None:
    assert sealed.question(SECRET, b"what?") != sealed.question(SECRET, b"what?")


@pytest.mark.parametrize("place", [0, 31, 32, 40, -1])
def test_what_was_changed_on_the_way_is_refused(place: int) -> None:
    question = bytearray(sealed.question(SECRET, b"what?"))
    question[place] ^= 1
    with pytest.raises(UnsealedError):
        sealed.asked(SECRET, bytes(question))


def test_who_does_not_know_the_secret_is_refused() -> None:
    question = sealed.question(b"another", b"what?")
    for secret in (SECRET, b""):
        with pytest.raises(UnsealedError):
            sealed.asked(secret, question)
    for message in (b"", b"x" * 32, b"x" * 64):
        with pytest.raises(UnsealedError):
            sealed.asked(SECRET, message)
    with pytest.raises(UnsealedError):
        sealed.asked(b"", sealed.question(b"", b"what?"))


def test_an_answer_to_another_question_is_refused() -> None:
    one, other = (sealed.question(SECRET, b"what?") for _ in range(2))
    answer = sealed.answer(SECRET, one, b"that")
    with pytest.raises(UnsealedError):
        sealed.answered(SECRET, other, answer)
    with pytest.raises(UnsealedError):
        sealed.asked(SECRET, answer)
    with pytest.raises(UnsealedError):
        sealed.answered(SECRET, one, one)
