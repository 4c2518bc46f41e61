"""The last lines about shards: which are kept, and how many."""

from __future__ import annotations

import logging

from esp.core.log.recent import MOST, Recent


def logger_with(recent: Recent) -> logging.Logger:
    log = logging.Logger("esp")
    log.addHandler(recent)
    return log


def test_lines_about_shards_are_kept_and_no_others() -> None:
    recent = Recent()
    log = logger_with(recent)
    log.info("ready on %s", "http://127.0.0.1:2379")
    log.warning("%s: a bad frame", "10.0.0.9:4711")
    log.warning("slow: %s of %s", '/etcdserverpb.KV/Put "/secret"', "10.0.0.9:4711")
    log.debug("shard %s: %s", "a", "no news")
    log.warning("shard %s: %s", "a", "no endpoint can be used:\nrefused")
    log.info("shard %s: %s", "b", "back after 3 s")
    assert [(line.level, line.shard) for line in recent.lines] == [("warning", "a"), ("info", "b")]
    assert [line.text for line in recent.lines] == [
        "shard a: no endpoint can be used:\\nrefused",
        "shard b: back after 3 s",
    ]


def test_a_bound() -> None:
    recent = Recent()
    log = logger_with(recent)
    for number in range(MOST + 3):
        log.warning("shard %s: lost %d times", "a", number)
    assert len(recent.lines) == MOST
    assert recent.lines[0].text == "shard a: lost 3 times"


def test_a_line_that_cannot_be_made_raises_nothing() -> None:
    recent = Recent()
    logger_with(recent).warning("shard %s: %d", "a", "no number")
    assert not recent.lines
