"""A server that computes nothing, to measure the clients' own limit: ``python -m benchmarks.serving.idle PORT``."""

import asyncio
import sys

import httptools
import uvloop

CONTENT = b'{"predictions":[{"label":"7","index":7,"iterations":1,"residual":0.1}]}'
RESPONSE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(CONTENT), CONTENT)


class Idle(asyncio.Protocol):
    """Sends the same response to every request."""

    def connection_made(self, transport: asyncio.WriteTransport) -> None:  # type: ignore[override]
        self._transport = transport
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        self._transport.write(RESPONSE)


async def main(port: int) -> None:
    """Serve until a signal arrives."""
    listening = await asyncio.get_running_loop().create_server(Idle, "127.0.0.1", port)
    await listening.serve_forever()


uvloop.run(main(int(sys.argv[1])))
