"""Attacks on the framing of HTTP: heads, chunks, trailers, half-closed connections, readers that do not read."""

import itertools
import socket

import pytest

from tests.app.running import RunningServer
from tests.security.conftest import answered, connected

MB = 1024 * 1024
CHUNKED = b"transfer-encoding: chunked\r\n\r\n"
GET = b"GET /v2/health/live HTTP/1.1\r\nhost: t\r\n"
POST = b"POST /predict HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\n"
BODY = b'{"inputs": [[%s]]}' % b",".join([b"[1,2,3,4,5,6,7,8]"] * 8)
CHUNKED_BODY = b"%x\r\n%s\r\n" % (len(BODY), b'{"inputs": [[[%s]]]}' % b",".join([b"[1,2,3,4,5,6,7,8]"] * 8))
