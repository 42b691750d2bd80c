"""Where clients carry their token."""

from starlette.datastructures import Headers


def token_of_headers(headers: Headers) -> str:
    """Return what stands behind `Bearer` or `DeepL-Auth-Key`; "" where nothing does."""
    return headers.get("authorization", "").partition(" ")[2].strip()
