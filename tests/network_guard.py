"""Block the network in tests: a connection to another machine is refused and logged.

Decisions: an audit hook, which no Python library can bypass, in this process and (through a sitecustomize folder at the
front of PYTHONPATH) in every process that it starts. Only addresses of this machine are allowed.
"""

import ipaddress
import os
import sys
from pathlib import Path

LOG = "LAENNEC_TEST_NETWORK_LOG"
_ASKED = {
    "socket.connect": lambda _, address: address,
    "socket.sendto": lambda _, address: address,
    "socket.sendmsg": lambda _, address: address,
    "socket.getaddrinfo": lambda host, *_: (host,),
    "socket.gethostbyname": lambda host, *_: (host,),
    "socket.gethostbyaddr": lambda host, *_: (host,),
}


def is_here(address: object) -> bool:
    """Whether an address belongs to this machine: loopback, or a Unix socket."""
    if not isinstance(address, tuple):
        return True  # AF_UNIX, netlink, or a socket that is connected already
    host = address[0] if address else None
    if isinstance(host, bytes):
        host = host.decode(errors="replace")
    if host in (None, "", "localhost", "0.0.0.0", "::", "ip6-localhost", os.uname().nodename):
        return True
    try:
        return ipaddress.ip_address(str(host).split("%")[0]).is_loopback
    except ValueError:
        return False


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    asked = _ASKED.get(event)
    if asked is None or is_here(address := asked(*arguments)):
        return
    if log := os.environ.get(LOG):
        with open(log, "a") as file:
            file.write(f"{event} {address!r} {sys.argv[:3]}\n")
    raise PermissionError(f"the network is closed in tests: {event} {address!r}")


_closed = False


def close_the_network() -> None:
    """Refuse connections to other machines from now on, here and in every process that is started."""
    global _closed
    if not _closed:
        sys.addaudithook(_watch)
        _closed = True
    folder = str(Path(__file__).resolve().parent / "closed_network")
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if folder not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([folder, *(p for p in paths if p)])
