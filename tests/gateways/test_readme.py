"""protocols/README.md names the routes and the hello of this daemon."""

import json
import re

import msgspec

from avatard.gateways.agent import AnyCommand, Speak
from avatard.gateways.http import Server
from avatard.gateways.room_routes import URLS
from avatard.gateways.rooms import Wanted
from avatard.gateways.say import Ask
from avatard.gateways.websocket import Hello
from avatard.session.session import Session
from tests.support.paths import ROOT
from tests.support.serving import config, portrait

README = (ROOT / "protocols" / "README.md").read_text(encoding="utf-8")


async def test_every_route_is_documented():
    served = {
        resource.canonical
        for resource in Server(config(), Session(config(), portrait())).application().router.resources()
    }
    documented = set(re.findall(r"`(?:GET |POST |PATCH |DELETE )?(/[\w/]*)[^`]*`", README.split("## WebRTC")[0]))
    known = {path.replace("/{name}", "/ID").removesuffix("/") or "/" for path in served} - {"/web"}
    documented |= {path.replace("/NAME", "/ID") for path in documented}
    assert known - {"/whip/ID", "/whep/ID", "/rooms"} <= documented
    assert "`/rooms/ID/…`" in README
    assert "/whep/ID" in README and "/whip/ID" in README


def test_the_hello_is_documented():
    section = README.split("## WebSocket")[1].split("\n## ")[0]
    hello = json.loads(section.split("```json\n")[1].split("\n```")[0])
    assert set(hello) == set(Hello.__struct_fields__)
    assert msgspec.convert(hello, Hello) == Hello(sample_rate=hello["sample_rate"])
    for key in hello:
        assert f"| `{key}` |" in section


def test_the_messages_of_the_agents_websocket_are_documented():
    section = README.split("## LiveAvatar's WebSocket")[1].split("\n## ")[0]
    example = json.loads(section.split("```json\n")[1].split("\n```")[0])
    assert msgspec.convert(example, AnyCommand) == Speak(event_id="answer-1", audio=example["audio"])
    for command in AnyCommand.__args__:
        assert f"`{command.__struct_config__.tag}`" in section


def test_the_body_of_a_text_is_documented():
    section = README.split("## Text")[1].split("\n## ")[0]
    example = json.loads(section.split("`POST /api/say` with `")[1].split("`")[0])
    assert msgspec.convert(example, Ask).text == example["text"]
    for key in Ask.__struct_fields__:
        assert f"`{key}`" in section or f'"{key}"' in section


def test_the_body_of_a_room_is_documented():
    section = README.split("### Rooms")[1].split("\n### ")[0]
    example = json.loads(section.split("```json\n")[1].split("\n```")[0])
    assert set(example) == set(Wanted.__struct_fields__)
    assert msgspec.convert(example, Wanted).identity == example["identity"]
    for key in example:
        assert f"`{key}`" in section
    for name in URLS:
        assert f"`{name}`" in section
