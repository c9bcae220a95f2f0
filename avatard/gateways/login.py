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
WRONG = '<p role="alert">This is not the token of this server.</p>'


def wants_login_page(request: web.Request) -> bool:
    """Whether a request without the token is a person's, who opens the page in a browser."""
    return request.method == hdrs.METH_GET and request.path == "/" and "text/html" in request.headers.get("Accept", "")


def login_page(request: web.Request) -> web.Response:
    """The form; it sends the token as `?token=`, and the page's answer keeps it as a cookie."""
    form = (Path(__file__).parent / "web" / "login.html").read_text(encoding="utf-8")
    text = form.replace("<!-- wrong -->", WRONG if "token" in request.query else "")
    return web.Response(status=401, text=text, content_type="text/html", headers=LOGIN_HEADERS)
