"""What a browser without the token is shown instead of the page: a form that asks for it."""

from __future__ import annotations

from pathlib import Path

from aiohttp import hdrs, web

#: The form's styles are in it: the page's own files are behind the token.
LOGIN_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'self'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "WWW-Authenticate": "Bearer",
}
WRONG = '<p role="alert">This is not the token of this {}.</p>'
SERVER = "This server asks for its token. Whoever started it has it: it is the value of <code>--token</code>."
ROOM = "This room asks for its token, or it has ended. Whoever sent you here has it."


def wants_login_page(request: web.Request, path: str) -> bool:
    """Whether a request without the token is a person's, who opens the page of a room: `path` is that in the room."""
    return request.method == hdrs.METH_GET and path == "/" and "text/html" in request.headers.get("Accept", "")


def login_page(request: web.Request) -> web.Response:
    """The form; it sends the token as `?token=`, and the page's answer keeps it as a cookie."""
    form = (Path(__file__).parent / "web" / "login.html").read_text(encoding="utf-8")
    whose, hint = ("server", SERVER) if request.path == "/" else ("room", ROOM)
    wrong = WRONG.format(whose) if "token" in request.query else ""
    text = form.replace("<!-- hint -->", hint).replace("<!-- wrong -->", wrong)
    return web.Response(status=401, text=text, content_type="text/html", headers=LOGIN_HEADERS)
