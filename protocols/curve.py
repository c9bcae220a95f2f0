"""CURVE keys of the ZeroMQ sockets (RFC 26 CurveZMQ) and who may connect (RFC 27 ZAP).

A key pair is two files as CZMQ and pyzmq write them: `NAME.key` with the public key to hand out, and `NAME.key_secret`
with both keys, readable by its owner alone. Allowed clients are a text file with one
public key a line; what follows the key, and lines that start with "# ", are remarks.
"""

import os
import struct
from pathlib import Path
from typing import Final

import msgspec
import zmq
import zmq.asyncio
import zmq.auth
from zmq.auth.asyncio import AsyncioAuthenticator
from zmq.utils import z85

from avatard.errors import UserError

_ZAP_DOMAIN: Final = "avatard"


class KeysError(UserError):
    """A key that cannot be used; the text says which and what to do."""


class ServerKeys(msgspec.Struct, frozen=True):
    """The daemon's own key pair, and the clients it lets in: None is every client that knows the public key."""

    public: bytes  # Z85, 40 characters
    secret: bytes
    clients: frozenset[bytes] | None = None


def create_keys(folder: Path, name: str) -> tuple[Path, Path, str]:
    """Write a new pair.

    Returns:
        The path of the public file, the path of the secret one, and the public key.

    Raises:
        KeysError: the name is none of a file, one of that name is there, or the folder cannot be written.
    """
    if not name or Path(name).name != name:
        raise KeysError(f"{name!r} is no name of a file: give the folder apart from it")
    public_path, secret_path = folder / f"{name}.key", folder / f"{name}.key_secret"
    for path in (public_path, secret_path):
        if path.exists():
            raise KeysError(f"{path} exists: choose another name, or remove it if nobody needs that key")
    previous = os.umask(0o077)  # the secret must not be readable for a moment either
    try:
        folder.mkdir(parents=True, exist_ok=True)
        zmq.auth.create_certificates(folder, name)
    except OSError as error:
        raise KeysError(f"cannot write keys into {folder}: {error.strerror}") from None
    finally:
        os.umask(previous)
    public_path.chmod(0o644)
    return public_path, secret_path, _read_pair(secret_path)[0].decode("ascii")


def load_server_keys(secret_file: Path, clients_file: Path | None = None) -> ServerKeys:
    """Read the daemon's `NAME.key_secret` and the allowed clients' public keys.

    Raises:
        KeysError: a file cannot be read, or holds no valid key.
    """
    public, secret = _read_pair(secret_file)
    if secret is None:
        raise KeysError(f"{secret_file} has no secret key: give the .key_secret file that `avatard keys` made")
    return ServerKeys(public, secret, None if clients_file is None else _read_clients(clients_file))


def set_client_keys(socket: zmq.Socket[bytes], server_public: str, secret_file: Path | None) -> None:
    """Make a client's socket speak CURVE; without a file it takes a key pair nobody knows.

    Raises:
        KeysError: a key is not valid.
    """
    public, secret = zmq.curve_keypair() if secret_file is None else _read_pair(secret_file)
    if secret is None:
        raise KeysError(f"{secret_file} has no secret key: give the .key_secret file that `avatard keys` made")
    socket.curve_serverkey = _checked(server_public.encode(), "the server's public key")
    socket.curve_publickey, socket.curve_secretkey = public, secret


class Gatekeeper:
    """Asks for keys at the sockets of one context; nothing at all when there are none."""

    def __init__(self, context: zmq.asyncio.Context, keys: ServerKeys | None) -> None:
        self._keys = keys
        self._zap = None
        if keys is not None and keys.clients is not None:
            self._zap = AsyncioAuthenticator(context)
            self._zap.configure_curve_callback(_ZAP_DOMAIN, _Clients(keys.clients))

    def start(self) -> None:
        """Answer ZAP requests from now on; before the first bind."""
        if self._zap is not None:
            self._zap.start()

    def guard(self, socket: zmq.asyncio.Socket) -> None:
        """Let only those in who have the keys; before `bind`."""
        if self._keys is None:
            return
        socket.curve_server = True
        socket.curve_publickey, socket.curve_secretkey = self._keys.public, self._keys.secret
        if self._zap is not None:
            socket.zap_domain = _ZAP_DOMAIN.encode()
            # Without it a context whose ZAP handler is gone would let everybody in.
            socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def stop(self) -> None:
        """Close the ZAP socket, so that the context can end."""
        if self._zap is not None:
            self._zap.stop()


class _Clients:
    """Allowed public keys, as pyzmq's authenticator asks for them."""

    def __init__(self, clients: frozenset[bytes]) -> None:
        self._clients = clients

    def callback(self, domain: str, key: bytes) -> bool:
        del domain  # the context has one
        return key in self._clients


def _read_pair(path: Path) -> tuple[bytes, bytes | None]:
    try:
        public, secret = zmq.auth.load_certificate(path)
    except OSError as error:
        raise KeysError(f"cannot read the key file {path}: {error.strerror or 'no such file'}") from None
    except ValueError:
        raise KeysError(f"{path} is no key file: make one with `avatard keys`") from None
    _checked(public, f"the public key in {path}")
    return public, secret if secret is None else _checked(secret, f"the secret key in {path}")


def _read_clients(path: Path) -> frozenset[bytes]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise KeysError(f"cannot read the allowed clients {path}: {error.strerror}") from None
    entries = [(number, line.split(maxsplit=1)) for number, line in enumerate(lines, 1)]
    # "#" alone starts a comment: within a word it is a Z85 digit.
    return frozenset(
        _checked(words[0], f"{path}, line {number}") for number, words in entries if words and words[0] != b"#"
    )


def _checked(key: bytes, what: str) -> bytes:
    try:
        valid = len(key) == 40 and len(z85.decode(key)) == 32
    except (KeyError, ValueError, struct.error):
        valid = False
    if not valid:
        raise KeysError(f"{what} is not a Z85 key of 40 characters")
    return key
