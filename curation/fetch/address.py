"""Which addresses are fetched from: those of the public internet, and no other.

The one decision: networks are named here one by one, after IANA's special-purpose registries, and `ipaddress` is only a
second opinion: what it calls global changes with the Python release (and 224.0.1.1 is global to it).
"""

from __future__ import annotations

import ipaddress
import queue
import socket
import threading
from typing import Any

from curation.fetch.error import FetchError

# An address as `socket.connect` takes it, and the family that its socket needs.
Address = tuple[socket.AddressFamily, tuple[Any, ...]]

_REFUSED_V4 = [
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this host
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT; some clouds keep their metadata here
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's host agent: public by its number, reached from every machine of that cloud
        "169.254.0.0/16",  # link-local, metadata of most clouds
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
]
_UNICAST_V6 = ipaddress.IPv6Network("2000::/3")
# A network that has IPv6 only reaches IPv4 hosts under this prefix: judged by the IPv4 address inside.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_REFUSED_V6 = [
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments: Teredo, ORCHID
        "2001:db8::/32",
        "2002::/16",  # 6to4: an IPv4 address inside
        "3fff::/20",  # documentation
    )
]


def is_public(address: str) -> bool:
    """Whether a numeric address, IPv4 or IPv6, belongs to a host of the public internet."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip not in _UNICAST_V6 or any(ip in network for network in _REFUSED_V6):
            return False
    elif any(ip in network for network in _REFUSED_V4):
        return False
    return ip.is_global and not ip.is_multicast


def resolve(host: str, port: int, seconds: float) -> list[Address]:
    """All addresses of a host, asked for once. Raises FetchError `dns: ...`, and TimeoutError after `seconds`.

    The system's resolver cannot be interrupted, so it is asked in a thread of its own (0.1 ms), which a caller who runs
    out of time leaves behind; it ends when the resolver gives up.
    """
    answers: queue.SimpleQueue[list[Any] | OSError | UnicodeError] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            answers.put(error)

    threading.Thread(target=ask, name="fetch-dns", daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError("timed out") from None
    if isinstance(answer, socket.gaierror) and answer.errno == socket.EAI_AGAIN:
        raise FetchError("dns: no answer") from answer
    if isinstance(answer, OSError | UnicodeError):
        raise FetchError("dns: name not found") from answer
    addresses: list[Address] = [
        (family, sockaddr) for family, *_, sockaddr in answer if family in (socket.AF_INET, socket.AF_INET6)
    ]
    if not addresses:
        raise FetchError("dns: name not found")
    return addresses


def dial(address: Address, seconds: float) -> socket.socket:
    """A connection to this very address: no name is looked up again. Raises OSError."""
    family, sockaddr = address
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(seconds)
        sock.connect(sockaddr)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock
