"""The page: its files, and the answer that begins it."""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

from avatard.protocols.whep import forwarded_prefix

PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "connect-src 'self' ws: wss:; object-src 'none'; base-uri 'self'; frame-ancestors 'self'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def web_folder() -> Path:
    """The folder of the page's files."""
    return Path(__file__).parent / "web"


def page(request: web.Request, cookie: str, token: str, tls: bool, path: str = "/") -> web.Response:
    """The page, with its token as a cookie; behind a proxy under the path that the proxy removed.

    Args:
        request: asks for the page.
        cookie: its name.
        token: its value; without one there is no cookie.
        tls: whether this server ends TLS.
        path: of the page on this server, with a slash at its end.
    """
    prefix = forwarded_prefix(request)
    text = (web_folder() / "index.html").read_text(encoding="utf-8")
    if prefix:  # its addresses are relative, and a proxy may serve it without the slash at the end
        text = text.replace("<head>", f'<head>\n  <base href="{prefix}{path}">', 1)
    response = web.Response(text=text, content_type="text/html", headers=PAGE_HEADERS)
    if token:
        # The page's own requests, its styles and its WebSocket cannot all carry a header. A proxy may serve the page of
        # a server without the slash at its end; a room redirects to the slash.
        root = (prefix or "/") if path == "/" else f"{prefix}{path}"
        secure = tls or request.headers.get("X-Forwarded-Proto") == "https"
        response.set_cookie(cookie, token, path=root, httponly=True, samesite="Strict", secure=secure)
    return response
