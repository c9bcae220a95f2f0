"""Every message survives the wire; what is no message gets one line that says why."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avatard.protocols.messages import (
    MAX_IMAGE_BYTES,
    AnyMessage,
    AnyRequest,
    Audio,
    EndOfUtterance,
    Face,
    Head,
    Interrupt,
    MessageError,
    Meta,
    Portrait,
    Speech,
    State,
    Stats,
    Topic,
    Video,
    decode,
    decode_request,
    encode,
    floats,
    split,
)

MICROS = st.integers(0, 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=64)
REALS = st.floats(allow_nan=False)
HEADER = {"sid": TEXT, "seq": MICROS, "pts_us": MICROS, "cap_us": MICROS}
SIZE = st.integers(1, 4096)
HEAD = st.builds(Head, q=st.tuples(REALS, REALS, REALS, REALS), t=st.tuples(REALS, REALS, REALS), s=REALS)
MESSAGES: st.SearchStrategy[AnyMessage] = st.one_of(
    st.builds(
        Meta,
        server=TEXT,
        identity=TEXT,
        fps=REALS,
        w=SIZE,
        h=SIZE,
        sr=SIZE,
        arkit=st.lists(TEXT, max_size=60),
        **HEADER,
    ),
    st.builds(State, id=TEXT, message=TEXT, played_us=st.none() | MICROS, **HEADER),
    st.builds(
        Face, lm=st.binary(min_size=816, max_size=816), bs=st.binary(min_size=208, max_size=208), head=HEAD, **HEADER
    ),
    st.builds(Video, w=SIZE, h=SIZE, data=st.binary(), **HEADER),
    st.builds(Audio, sr=SIZE, n=SIZE, data=st.binary(), **HEADER),
    st.builds(Stats, values=st.dictionaries(TEXT, REALS), **HEADER),
)
# Eight bytes are whole samples of every encoding and channel count.
SOUND = st.lists(st.binary(min_size=8, max_size=8).filter(lambda b: np.isfinite(floats(b)).all()), min_size=1).map(
    b"".join
)
REQUESTS: st.SearchStrategy[AnyRequest] = st.one_of(
    st.builds(Speech, id=TEXT, sr=st.integers(8_000, 192_000), ch=st.sampled_from([1, 2]), data=SOUND),
    st.builds(Interrupt, id=TEXT),
    st.builds(EndOfUtterance, id=TEXT),
    st.builds(Portrait, id=TEXT, data=st.binary(min_size=1)),
)


@given(MESSAGES)
def test_every_message_round_trips(message):
    assert decode(encode(message)) == message


@given(REQUESTS)
def test_every_request_round_trips(request_):
    assert decode_request(encode(request_)) == request_


@given(MESSAGES)
def test_any_msgpack_reader_sees_a_map_with_the_header(message):
    fields = msgspec.msgpack.decode(encode(message))
    assert fields["v"] == 1
    assert fields["t"] == type(message).__name__.lower()
    assert {"sid", "seq", "pts_us", "cap_us"} <= fields.keys()


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_one_clear_error(data):
    try:
        decode_request(data)
    except MessageError as error:
        assert str(error) and "\n" not in str(error)


@given(MESSAGES, st.sampled_from(Topic))
def test_topic_and_payload_are_found_in_two_parts_and_in_one(message, topic):
    payload = encode(message)
    assert split([topic.encode(), payload]) == (topic, payload)
    assert split([topic.encode() + payload]) == (topic, payload)


def test_fields_of_a_newer_minor_version_are_ignored():
    assert decode_request(msgspec.msgpack.encode({"v": 1, "t": "interrupt", "since": "1.1"})) == Interrupt()


def test_the_longest_header_leaves_a_face_within_1200_bytes():
    head = Head(q=(0.1, 0.2, 0.3, 0.4), t=(0.1, 0.2, 0.3), s=70.1)
    face = Face(lm=bytes(816), bs=bytes(208), head=head, speaking=True)
    face = msgspec.structs.replace(face, sid="01234567", seq=2**31, pts_us=2**33, cap_us=2**51)
    assert len(encode(face)) <= 1200


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"t": "audio"}, "missing required field `enc`"),
        ({"enc": "pcm_s16le"}, "missing required field `t`"),
        ({"t": "song"}, "Invalid value 'song'"),
        ({"t": "interrupt", "v": 2}, "Invalid enum value 2"),
        ({"t": "interrupt", "id": "x" * 65}, "length <= 64"),
        ({"t": "audio", "enc": "mp3", "sr": 16_000, "data": b"1234"}, "Invalid enum value 'mp3'"),
        ({"t": "audio", "enc": "f32le", "sr": 0, "data": b"1234"}, ">= 8000"),
        ({"t": "audio", "enc": "f32le", "sr": 16_000, "ch": 6, "data": b"1234"}, "Invalid enum value 6"),
        ({"t": "audio", "enc": "f32le", "sr": 16_000, "data": [0.0]}, "Expected `bytes`, got `array`"),
        ({"t": "audio", "enc": "f32le", "sr": 16_000, "data": b""}, "0 bytes, expected a positive multiple of 4"),
        ({"t": "audio", "enc": "f32le", "sr": 16_000, "data": b"123"}, "3 bytes, expected a positive multiple of 4"),
        ({"t": "audio", "enc": "f32le", "sr": 16_000, "data": b"\0\0\xc0\x7f"}, "1 samples that are not finite"),
        ({"t": "audio", "enc": "pcm_s16le", "sr": 8_000, "data": bytes(160_002)}, "10.0001 s, expected at most 10"),
        ({"t": "identity", "data": b""}, "length >= 1"),
        ({"t": "identity", "data": bytes(MAX_IMAGE_BYTES + 1)}, "length <= 8388608"),
    ],
)
def test_an_error_names_what_was_wrong(fields, text):
    with pytest.raises(MessageError, match=text.replace("(", r"\(")):
        decode_request(msgspec.msgpack.encode(fields))


def test_an_error_quotes_little_of_what_was_sent():
    with pytest.raises(MessageError, match=r"^Invalid value 'x x") as caught:
        decode_request(msgspec.msgpack.encode({"t": "x\n" * 1_000_000}))
    assert len(str(caught.value)) == 200


@pytest.mark.parametrize("depth", [10, 100_000])
def test_deep_nesting_is_refused(depth):
    with pytest.raises(MessageError):
        decode_request(b"\x82\xa1t\xa9interrupt\xa1x" + b"\x91" * depth)


def test_samples_are_mono_and_clipped():
    stereo = np.array([[0.5, -0.5], [2.0, 0.0], [-3.0, -1.0]], "<f4")
    speech = Speech(enc="f32le", sr=48_000, ch=2, data=stereo.tobytes())
    np.testing.assert_array_equal(speech.samples(), np.array([0, 0.5, -1], np.float32))
    assert speech.seconds == 3 / 48_000
    mono = np.array([-32768, 16384], "<i2")
    np.testing.assert_array_equal(Speech(enc="pcm_s16le", sr=8_000, data=mono.tobytes()).samples(), [-1, 0.5])
