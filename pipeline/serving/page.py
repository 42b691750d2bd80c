"""The page with which a person tries a model that is served.

It is the same for every model: its script asks `api/model` what is served, and the other routes of `api/` for answers.
"""

import base64
import hashlib
import re
from pathlib import Path

from pipeline.pages.base import read, render

FOLDER = Path(__file__).parent


def render_page() -> tuple[str, dict[str, str]]:
    """Return the page as HTML, and the headers to send with it.

    The Content-Security-Policy allows only the page's own style and script, by their hashes, and requests to the server
    that sent it; and the browser refuses to turn any text into HTML or a script (Trusted Types, where it knows them).
    """
    html = render("page", FOLDER, script=read("base.js") + read("page.js", FOLDER))
    policy = {
        "default-src": "'none'",
        "script-src": hash_of("script", html),
        "style-src": hash_of("style", html),
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    headers = {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "Cache-Control": "no-cache",  # another version may be served at the address tomorrow
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return html, headers


def hash_of(tag: str, html: str) -> str:
    """Return the hash of the only element of its kind, as a source of a Content-Security-Policy."""
    (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
