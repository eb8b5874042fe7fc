"""HOST:PORT, as options have it."""

import ipaddress

from hansa.core.errors import ConfigError


def split(address: str, option: str) -> tuple[str, int]:
    """Host and port.

    >>> split("[::1]:8443", "--server")
    ('[::1]', 8443)

    Raises:
      ConfigError: names the option and what was expected.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{option} {address}: write HOST:PORT, as in 127.0.0.1:8443.")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ConfigError(f"{option} {address}: write an IPv6 address in brackets, as in [::1]:8443.")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
