"""`eventually`: the only waiting that tests need where the kernel sends no word."""

import time

import pytest

from pytest_isolation import eventually


def test_it_returns_the_first_true_value():
    """And calls no further."""
    answers = iter([0, "", [], "now"])
    assert eventually(lambda: next(answers)) == "now"
    with pytest.raises(StopIteration):
        next(answers)


def test_it_waits_until_an_assertion_holds():
    """A function that asserts and returns nothing has succeeded when it returns."""
    calls = []

    def look():
        calls.append(1)
        assert len(calls) == 3

    assert eventually(look) is None
    assert len(calls) == 3


def test_it_says_what_it_saw_last():
    """An AssertionError with the value and the time."""

    def look():
        return 0

    with pytest.raises(AssertionError, match=r"look was not true within 0\.01 s; it last returned 0"):
        eventually(look, timeout=0.01)


def test_the_last_assertion_comes_out():
    """With a note about the time."""

    def look():
        value = 40 + 1
        assert value == 42

    with pytest.raises(AssertionError, match="41 == 42") as caught:
        eventually(look, timeout=0.01)
    assert any("0.01 s" in note for note in caught.value.__notes__)


def test_other_exceptions_come_out_at_once():
    """They are no answer that could change."""
    calls = []

    def look():
        calls.append(1)
        raise KeyError("broken")

    with pytest.raises(KeyError):
        eventually(look, timeout=60)
    assert len(calls) == 1


def test_it_looks_at_least_once():
    """With no time at all."""
    assert eventually(lambda: "there", timeout=0) == "there"
    with pytest.raises(AssertionError):
        eventually(lambda: False, timeout=-1)


def test_it_looks_again_after_the_time_is_up():
    """A function that took all the time is asked once more."""
    calls = []

    def look():
        calls.append(1)
        time.sleep(0.02)
        return len(calls) > 1

    assert eventually(look, timeout=0.01)
