"""Which addresses reach nothing but this machine."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Tell whether a name or an address, in brackets or not, is this machine's own for itself."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
