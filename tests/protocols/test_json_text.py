import pytest

from avatard.protocols.json_text import parse_object, text_of


def test_an_object_is_read():
    assert parse_object('{"a": [1]}') == parse_object(b'{"a": [1]}') == {"a": [1]}


@pytest.mark.parametrize(
    "text",
    ["", "{", b"\xff", "[" * 200_000, '{"a":' * 200_000, "1" * 5000, "[]", "null", '{"id": "\\ud800"}', '{"a": NaN}'],
)
def test_anything_else_is_a_value_error_of_one_line(text):
    with pytest.raises(ValueError, match="^expected (JSON|a JSON object)$"):
        parse_object(text)


def test_a_text_of_an_object_is_cut_and_nothing_else_is_one():
    assert text_of({"id": "abc"}, "id", 2) == "ab"
    assert text_of({"id": [["abc"]]}, "id") == text_of({}, "id") == ""
