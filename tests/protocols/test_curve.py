"""Key files: what is written, and what is refused."""

import pytest
from typer.testing import CliRunner

from avatard.cli import app
from avatard.protocols.curve import KeysError, create_keys, load_server_keys


def test_the_secret_is_its_owners_alone(tmp_path):
    public_file, secret_file, public = create_keys(tmp_path / "keys", "server")
    assert secret_file.stat().st_mode & 0o777 == 0o600
    assert public_file.stat().st_mode & 0o777 == 0o644
    assert public in public_file.read_text()
    loaded = load_server_keys(secret_file)
    assert loaded.public.decode() == public
    assert loaded.secret.decode() not in public_file.read_text()
    assert loaded.clients is None


def test_keys_are_never_overwritten(tmp_path):
    create_keys(tmp_path, "server")
    before = (tmp_path / "server.key_secret").read_text()
    with pytest.raises(KeysError, match=r"server\.key exists"):
        create_keys(tmp_path, "server")
    assert (tmp_path / "server.key_secret").read_text() == before


@pytest.mark.parametrize("name", ["", "a/b", "/etc/key"])
def test_a_name_is_no_path(tmp_path, name):
    with pytest.raises(KeysError, match="is no name of a file"):
        create_keys(tmp_path, name)


def test_the_verb_prints_the_public_key_and_not_the_secret_one(tmp_path):
    result = CliRunner().invoke(app, ["keys", str(tmp_path), "--name", "game"])
    assert result.exit_code == 0
    loaded = load_server_keys(tmp_path / "game.key_secret")
    assert loaded.public.decode() in result.output
    assert loaded.secret.decode() not in result.output
    again = CliRunner().invoke(app, ["keys", str(tmp_path), "--name", "game"])
    assert again.exit_code == 1
    assert again.output.startswith("avatard: ") and again.output.count("\n") == 1


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(KeysError, match="cannot write keys into"):
        create_keys(tmp_path / "file" / "keys", "server")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "cannot read the key file"),
        (b"\x89PNG\r\n\xff", "is no key file"),
        (b'curve\n public-key = "short"\n', "public key in .* is not a Z85 key"),
        (b'curve\n public-key = "' + b"#" * 40 + b'"\n', "public key in .* is not a Z85 key"),
        (b'curve\n public-key = "' + b"a" * 40 + b'"\n', "has no secret key"),
        (b'curve\n public-key = "' + b"a" * 40 + b'"\n secret-key = "' + b"~" * 40 + b'"\n', "secret key in .* is not"),
    ],
)
def test_a_bad_key_file_is_one_clear_line(tmp_path, content, text):
    path = tmp_path / "server.key_secret"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(KeysError, match=text):
        load_server_keys(path)


def test_allowed_clients_name_the_bad_line(tmp_path):
    _, secret_file, public = create_keys(tmp_path, "server")
    clients = tmp_path / "clients"
    clients.write_text(f"# remarks\n{public} game engine\n\n")
    assert load_server_keys(secret_file, clients).clients == frozenset([public.encode()])
    clients.write_text(f"{public}\nnonsense\n")
    with pytest.raises(KeysError, match="clients, line 2 is not a Z85 key of 40 characters"):
        load_server_keys(secret_file, clients)
    with pytest.raises(KeysError, match="cannot read the allowed clients"):
        load_server_keys(secret_file, tmp_path / "nowhere")
