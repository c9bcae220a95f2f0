"""What protocols/README.md tells readers in other languages is what is on the wire."""

import json
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from avatard.models.face.arkit import ARKIT_NAMES
from avatard.protocols import events, messages
from avatard.protocols.messages import decode, decode_request, encode

README = Path(messages.__file__).with_name("README.md").read_text()
EXAMPLES = re.findall(r"```json\n(.*)\n```\n```hex\n([^`]*)```", README)


def plain(value):
    """The JSON of an example as what msgpack carries: `<f32 k/8, k = 0..203>` is bytes."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, str) and (series := re.fullmatch(r"<(f32|s16|u8) k/(\d+), k = (\d+)\.\.(\d+)>", value)):
        kind, divisor, first, last = series.groups()
        numbers = np.arange(int(first), int(last) + 1) / int(divisor)
        return numbers.astype({"f32": "<f4", "s16": "<i2", "u8": "u1"}[kind]).tobytes()
    return value


def hexdump(wire):
    """32 bytes a line."""
    return "".join(wire[i : i + 32].hex(" ") + "\n" for i in range(0, len(wire), 32))


def test_there_is_an_example_of_every_message_and_request():
    described = {(fields["t"], "sid" in fields) for fields in (json.loads(text) for text, _ in EXAMPLES)}
    structs = [*messages.AnyMessage.__args__, *messages.AnyRequest.__args__]
    assert described == {(s.__struct_config__.tag, issubclass(s, messages.Header)) for s in structs}


@pytest.mark.parametrize(
    ("text", "dump"), EXAMPLES, ids=[f"{i}-{json.loads(text)['t']}" for i, (text, _) in enumerate(EXAMPLES)]
)
def test_the_hex_is_what_avatard_sends_and_reads(text, dump):
    fields = plain(json.loads(text))
    read = decode if "sid" in fields else decode_request
    wire = encode(read(msgspec.msgpack.encode(fields)))
    assert msgspec.msgpack.decode(wire) == fields
    lines = hexdump(wire)
    assert dump == lines, f"the README's hex of {fields['t']} should be:\n{lines}"


@pytest.mark.parametrize(
    ("t", "structs"),
    [(s.__struct_config__.tag, s) for s in messages.AnyMessage.__args__],
)
def test_every_field_of_a_topic_is_documented(t, structs):
    section = README.split(f"### `avatard/1/{t}`")[1].split("##")[0]
    for field in set(structs.__struct_fields__) - set(messages.Header.__struct_fields__) - {"head"}:
        assert f"`{field}`" in section


@pytest.mark.parametrize("event", events.Event.__subclasses__(), ids=lambda event: event.TYPE)
def test_every_event_and_its_fields_are_documented(event):
    rows = README.split("## Events")[1].split("\n## ")[0].split("\n# ")[0].splitlines()
    row = next(row for row in rows if row.startswith("|") and f"`{event.TYPE}`" in row.split("|")[1])
    for field in set(event.__struct_fields__) - {"values", "fields"}:  # they become fields of `data`
        assert f"`{field}`" in row


def test_the_arkit_names_are_those_of_the_face_model():
    block = README.split("## ARKit coefficients")[1].split("```")[1]
    assert tuple(block.split()[1:]) == ARKIT_NAMES


@pytest.mark.parametrize(
    ("engine", "axes"),
    [
        # Where an engine's own axes are along ours, for a character that faces the viewer (our -z).
        ("Unity", {"x": (-1, 0, 0), "y": (0, -1, 0), "z": (0, 0, -1)}),  # x is the character's right
        ("Unreal", {"x": (0, 0, -1), "y": (-1, 0, 0), "z": (0, -1, 0)}),
        ("Godot", {"x": (1, 0, 0), "y": (0, -1, 0), "z": (0, 0, -1)}),  # x is the character's left
    ],
)
def test_the_engines_conversions_turn_points_the_same_way(engine, axes):
    row = next(line for line in README.splitlines() if line.startswith(f"| {engine}"))
    _, _, position, quaternion, _ = [cell.strip(" ()") for cell in row.split("|")][:5]

    def convert(rule, values):
        named = dict(zip("xyzw", values, strict=False))
        terms = [term.strip() for term in rule.split(",")]
        return np.array([-named[term[-1]] if term.startswith("−") else named[term] for term in terms])

    to_engine = np.array([axes[name] for name in "xyz"], float)
    point = np.array([0.3, -0.5, 0.2])
    np.testing.assert_allclose(convert(position, point), to_engine @ point)
    rotation = Rotation.from_rotvec([0.2, -0.4, 0.3])
    turned = Rotation.from_quat(convert(quaternion, rotation.as_quat())).apply(convert(position, point))
    np.testing.assert_allclose(turned, to_engine @ rotation.apply(point), atol=1e-12)
