"""Two processes of one machine talk over its loopback interface; some sandboxes have none."""

import socket

import pytest


def works() -> bool:
    """Whether a connection to this machine itself can be made."""
    with socket.socket() as listener, socket.socket() as caller:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        try:
            caller.connect(listener.getsockname())
        except OSError:
            return False
    return True


needed = pytest.mark.skipif(not works(), reason="no loopback interface to talk over")
