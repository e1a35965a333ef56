"""A lock among the processes that one server has started, which ends with the process that holds it.

It is a name in Linux's abstract socket namespace, so nothing is left behind however that process ends. Does not know
what it protects.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket


class ServerWideLock:
    """One owner uses it, from one thread."""

    def __init__(self, *names: str) -> None:
        """`names` say what is locked: locks of the same names exclude each other."""
        # Process ids are unique within a pid namespace only, while containers may share the network's namespace.
        identity = json.dumps([os.stat("/proc/self/ns/pid").st_ino, os.getppid(), *names])
        # A socket's name has room for 107 bytes; a model's may be longer.
        self._address = f"\0octavo-{hashlib.sha256(identity.encode()).hexdigest()}"
        self._socket: socket.socket | None = None

    def acquire(self) -> bool:
        """Takes the lock unless somebody holds it; never waits."""
        taken = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            taken.bind(self._address)
        except OSError as error:
            taken.close()
            if error.errno == errno.EADDRINUSE:
                return False
            raise
        self._socket = taken
        return True

    def release(self) -> None:
        """Lets go of it; does nothing where it is not held."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
