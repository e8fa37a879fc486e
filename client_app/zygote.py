"""Beside `accord node`: has imported what every ClientApp process needs, and forks one for each message.

A program of its own, run by path: nothing of ours may be imported in it, since the app that Flower unpacks brings
modules of the same names.
"""

import contextlib
import os
import select
import signal
import socket
import sys
from importlib import metadata

MOST = 1 << 16  # bytes of the words of a command line


def main(path: str, parent: int) -> None:
    """Serve `path` until the parent is gone."""
    (entry,) = metadata.entry_points(group="console_scripts", name="flwr-clientapp")
    start = entry.load()
    import flwr.clientapp
    import grpc  # noqa: F401 - for the child

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children leave nothing behind
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        while os.getppid() == parent:
            if not select.select([server], [], [], 1.0)[0]:
                continue
            line, _ = server.accept()
            with line, contextlib.suppress(OSError):
                words, streams, *_ = socket.recv_fds(line, MOST, 2)
                if os.fork() == 0:
                    server.close()
                    _become(words.decode().split("\0"), streams, line, start)
                line.sendall(b"ok")
                for stream in streams:
                    os.close(stream)


def _become(words: list[str], streams: list[int], line: socket.socket, start) -> None:
    """In the child: what the console script flwr-clientapp does, in a process group of its own parents."""
    code = 1
    try:
        for number in (signal.SIGCHLD, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        for place, stream in enumerate(streams, start=1):
            os.dup2(stream, place)
            os.close(stream)
        line.close()
        sys.argv = ["flwr-clientapp", *words]
        code = start()
    except SystemExit as leave:
        code = leave.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
