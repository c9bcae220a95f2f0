import pytest
from hypothesis import given
from hypothesis import strategies as st

from avatard.tts.sentences import MAX_CHARACTERS, one_line, sentences


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Well. Hello there, all. How are you?\nFine!", ["Well. Hello there, all.", "How are you?", "Fine!"]),
        ("Dr. Smith met J. R. Tolkien in 3.5 hours.", ["Dr. Smith met J. R. Tolkien in 3.5 hours."]),
        ('She said "I do not know." Then she left.', ['She said "I do not know."', "Then she left."]),
        ("今日はとてもいい天気ですね。散歩に行きましょう。", ["今日はとてもいい天気ですね。", "散歩に行きましょう。"]),
        ("no mark at the end", ["no mark at the end"]),
        (" … ?! \x00\n", []),
        ("", []),
    ],
)
def test_a_text_is_cut_after_its_sentences(text, found):
    assert sentences(text) == found


def test_a_long_sentence_is_cut_at_its_commas():
    pieces = sentences("and so on and so forth, " * 40)
    assert len(pieces) > 2 and all(piece.endswith(",") for piece in pieces[:-1])


@given(st.text(max_size=1000))
def test_nothing_that_can_be_said_is_lost(text):
    pieces = sentences(text)
    assert all(0 < len(piece) <= MAX_CHARACTERS and piece == one_line(piece) for piece in pieces)
    spoken = [letter for letter in one_line(text) if letter.isalnum()]
    assert [letter for piece in pieces for letter in piece if letter.isalnum()] == spoken
