"""Addresses that photos may be fetched from: public ones, or any.

A name is checked when it is resolved, and every address again when its socket is created: however two
parsers read a URL, and whatever a name resolves to a moment later, no connection goes elsewhere.
"""

import ipaddress
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from aiohttp import AddrInfoType
    from aiohttp.abc import AbstractResolver, ResolveResult

Allowed = Literal["public", "any"]
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

TRANSLATED = ipaddress.ip_network("64:ff9b::/96")  # IPv4 within IPv6, RFC 6052


class NotAllowed(Exception):
    """The address is one of this computer or of a private network; the text says so in one line."""


def is_public(address: Address) -> bool:
    """Whether an address is public; for one of IPv6 that holds one of IPv4, whether that one is.

    >>> [is_public(ipaddress.ip_address(text)) for text in ("93.184.216.34", "127.0.0.1", "::ffff:10.0.0.1")]
    [True, False, False]
    """
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in TRANSLATED:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner:
            return is_public(inner)
        if address.is_site_local or address.is_reserved:  # global to Python, as ::127.0.0.1 is
            return False
    return address.is_global and not address.is_multicast


def require_allowed(address: str, allowed: Allowed) -> None:
    """Raises NotAllowed for an address (of digits) that is not public, unless any is allowed."""
    if allowed == "public" and not is_public(ipaddress.ip_address(address.partition("%")[0])):
        raise NotAllowed(
            f"{address} is no public address; ingest.urls=any allows those of your own network, too"
        )


def checked_resolver(allowed: Allowed) -> "AbstractResolver":
    """A resolver of names for aiohttp that raises NotAllowed where one leads to an address not allowed."""
    from aiohttp.resolver import ThreadedResolver

    class Checked(ThreadedResolver):
        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
        ) -> "list[ResolveResult]":
            found = await super().resolve(host, port, family)
            for entry in found:
                require_allowed(entry["host"], allowed)
            return found

    return Checked()


def checked_sockets(allowed: Allowed) -> "Callable[[AddrInfoType], socket.socket]":
    """A function that creates the socket for an address as getaddrinfo gives it, or raises NotAllowed."""

    def create(address: "AddrInfoType") -> socket.socket:
        family, kind, protocol, _, host_and_port = address
        require_allowed(str(host_and_port[0]), allowed)
        return socket.socket(family, kind, protocol)

    return create
