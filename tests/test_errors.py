"""One place turns what libraries raise into our errors, and what strangers wrote into text for a terminal."""

import pytest
from tokenizers import Tokenizer

from fsrm_lite.errors import BundleError, InputError, as_ours, printable


class Panic(BaseException):
    """What a library in Rust raises: no ``Exception``."""


@pytest.mark.parametrize("error", [ValueError("a\nb"), Panic("a b"), RecursionError("a b"), MemoryError("a b")])
def test_whatever_is_raised_becomes_one_error_on_one_line(error):
    with (
        pytest.raises(BundleError, match=rf"^cannot read x: {type(error).__name__}: a b$") as caught,
        as_ours(BundleError, "cannot read x"),
    ):
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [InputError("mine"), KeyboardInterrupt(), SystemExit(3)])
def test_our_errors_and_requests_to_stop_pass(error):
    with pytest.raises(type(error)) as caught, as_ours(BundleError, "cannot read x"):
        raise error
    assert caught.value is error


def test_a_long_message_is_cut():
    with pytest.raises(BundleError) as caught, as_ours(BundleError, "x"):
        Tokenizer.from_str("[" * 10_000 + "x" * 10_000)
    assert len(str(caught.value)) < 600


def test_control_characters_are_written_out():
    assert printable("a\x1b[2J\x9b\u202e\x07é😀\n\t") == "a\\x1b[2J\\x9b\\u202e\\x07é😀\n\t"
