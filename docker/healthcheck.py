"""The containers' health check: 0 when this node answers /readyz with 200.

A bare socket and no imports besides: it runs every few seconds in eight containers.
Run with `python -I -S healthcheck.py [PORT]`.
"""

import socket
import sys

port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
try:
    with socket.create_connection(("127.0.0.1", port), timeout=3) as connection:
        connection.sendall(b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n")
        answer = b""
        while chunk := connection.recv(4096):
            answer += chunk
except OSError as error:
    sys.exit(f"/readyz: {error}")
status = answer.split(b"\r\n", 1)[0].split()
if len(status) < 2 or status[1] != b"200":
    body = answer.rpartition(b"\r\n\r\n")[2]
    sys.exit(f"/readyz: {body.decode(errors='replace')[:300]}")
