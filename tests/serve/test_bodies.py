"""Bodies: what is JSON, what is not, and how an error names its field."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsrm_lite.serve import bodies
from fsrm_lite.serve.bodies import MAX_DEPTH, RequestError, parse


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"[1]", "invalid_json"),
        (b"\xff\xfe", "invalid_json"),
        (b"null", "invalid_json"),
        (b'{"a": NaN}', "invalid_json"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "invalid_json"),
        (b"[" * 100_000, "nested_too_deeply"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested_too_deeply"),
        (b'{"a": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", "nested_too_deeply"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "duplicate_key"),
    ],
)
def test_what_is_no_usable_json_object(data, code):
    with pytest.raises(RequestError) as caught:
        parse(data)
    assert (caught.value.status, caught.value.code) == (400, code)
    assert "\n" not in str(caught.value)


def test_a_key_named_twice_among_a_hundred_thousand_is_found_at_once():
    keys = ", ".join(f'"{i}": 0' for i in range(100_000))
    with pytest.raises(RequestError, match="'99999' twice"):
        parse(f'{{{keys}, "99999": 1}}'.encode())


def test_deepest_body_that_is_taken():
    depth = MAX_DEPTH - 1
    assert parse(b'{"a": ' + b"[" * depth + b"]" * depth + b"}")["a"] is not None


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(data):
    with contextlib.suppress(RequestError):
        assert isinstance(parse(data), dict)


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.integers())))
def test_an_object_comes_back_as_it_was(body):
    assert parse(json.dumps(body).encode()) == body


def test_a_field_is_named_as_it_would_be_written():
    assert RequestError("", at=("questions", 0, "choices", 3, "value")).param == "questions[0].choices[3].value"
    assert RequestError("").param is None


def test_unknown_fields_are_refused_but_for_our_own():
    bodies.only({"a": 1, "x_anything": 2}, {"a"})
    with pytest.raises(RequestError, match=r"unrecognized request argument: questions\[2\].b"):
        bodies.only({"b": 1}, {"a"}, ("questions", 2))
