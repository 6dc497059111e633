"""Pauses before a process is started again."""

from __future__ import annotations

from sereno.backoff import LONGEST_PAUSE, QUICK, BackOff


def test_pauses_grow_while_it_never_works() -> None:
    back_off = BackOff()
    assert [back_off.pause(None) for _ in range(8)] == [0, 1, 2, 4, 8, 16, 30, 30]
    assert back_off.pause(QUICK + 1) == 0  # one that worked for a while has made up for them
    assert back_off.pause(None) == 0


def test_one_that_works_and_is_killed_again_and_again_waits_but_not_for_long() -> None:
    back_off = BackOff()
    pauses = [back_off.pause(0.5) for _ in range(60)]
    assert pauses[:4] == [0, 0, 0, 0]
    assert max(pauses[:9]) <= 2
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE
