"""A scope in which nothing is fetched: whoever opens a file of somebody else must not be led to a network by it.

Python reports every look-up of a host and every connection to its audit hooks, whichever library asks; the hook here
refuses them within the scope, for the thread that opened it. The refusal is a `ConnectionError`, so a library that has
the file in its cache takes it from there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

__all__ = ["Refused", "no_network"]

_EVENTS = frozenset(
    ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.sendto",
     "socket.sendmsg", "urllib.Request")
)  # fmt: skip

_ASKED: ContextVar[list[str] | None] = ContextVar("leanconv_asked_for_a_network", default=None)
_hooked = False


class Refused(ConnectionError):
    """A connection that was asked for where none may be made."""


@contextmanager
def no_network() -> Iterator[list[str]]:
    """Refuse every connection of this thread within the scope; the list holds what was asked for.

    Sockets between processes of this machine (AF_UNIX) stay open.

    >>> import socket
    >>> with no_network() as asked:
    ...     try:
    ...         socket.getaddrinfo("example.org", 443)
    ...     except ConnectionError as error:
    ...         print(error)
    no network here: example.org was asked for
    >>> asked
    ['example.org']
    """
    global _hooked
    if not _hooked:
        _hooked = True
        sys.addaudithook(_refuse)
    asked: list[str] = []
    token = _ASKED.set(asked)
    hub: Any = sys.modules.get("huggingface_hub.constants")  # which would try again for a minute
    before = getattr(hub, "HF_HUB_OFFLINE", None)
    if before is False:
        hub.HF_HUB_OFFLINE = True
    try:
        yield asked
    finally:
        _ASKED.reset(token)
        if before is False:
            hub.HF_HUB_OFFLINE = False


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in _EVENTS or (asked := _ASKED.get()) is None:
        return
    target = arguments[0] if event in ("urllib.Request", "socket.getaddrinfo", "socket.gethostbyname") else ""
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.gethostbyaddr"):
        target = arguments[-1]
        if isinstance(target, str | bytes) and event != "socket.gethostbyaddr":  # a path: AF_UNIX
            return
    name = str(target[0] if isinstance(target, tuple) and target else target)
    asked.append(name)
    raise Refused(f"no network here: {name} was asked for")
