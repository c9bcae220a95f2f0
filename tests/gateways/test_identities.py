"""`/api/identities`: pictures are kept, listed, used by name and forgotten."""

import io

import pytest

from tests.support.room_server import ADMIN, room_server
from tests.support.serving import portrait


@pytest.fixture
async def serving():
    async with room_server() as found:
        yield found


async def test_an_identity_is_kept_used_and_forgotten(serving):
    await serving.keep("ada", 200)
    _, listed = await serving.ask("GET", "/api/identities", ADMIN)
    (identity,) = listed["identities"]
    assert identity["name"] == "ada" and identity["bytes"] == len(portrait(200).data) and len(identity["digest"]) == 64
    _, _, room = await serving.create(identity="ada")
    assert room.session.generation.at_rest.pixels[-1, 0, 0] == 200
    assert not room.config.portrait.more, "another person's teeth"
    assert (await serving.ask("DELETE", "/api/identities/ada", ADMIN))[0] == 204
    assert serving.rooms.find(room.name) is room, "who shows it goes on"
    assert (await serving.ask("DELETE", "/api/identities/ada", ADMIN))[0] == 404
    status, answer = await serving.ask("POST", "/api/rooms", ADMIN, json={"identity": "ada"})
    assert (status, answer["code"]) == (422, "unknown-identity")


@pytest.mark.parametrize(
    ("query", "data", "kind", "status", "code"),
    [
        ("?name=../x", None, "image/png", 400, "identity"),
        ("?name=ada&face=two", None, "image/png", 400, "bad-request"),
        ("?name=ada", b"x", "image/png", 422, "image"),
        ("?name=ada", None, "text/plain", 415, "unsupported-media-type"),
        ("?name=taken", None, "image/png", 409, "exists"),
        ("?name=ada", bytes(9 << 20), "image/png", 413, "too-large"),
    ],
)
async def test_what_cannot_be_kept_is_one_line(serving, query, data, kind, status, code):
    await serving.keep("taken", 10)
    data = portrait().data if data is None else data
    got, answer = await serving.ask(
        "POST", f"/api/identities{query}", {**ADMIN, "Content-Type": kind}, data=io.BytesIO(data)
    )
    assert (got, answer["code"]) == (status, code) and "\n" not in answer["error"]
    assert len(serving.rooms.identities) == 1
