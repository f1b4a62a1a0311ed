"""A server that computes nothing: ``python -m benchmarks.serving.idle PORT``, to see how much the clients can ask."""

import asyncio
import sys

import httptools
import uvloop

CONTENT = b'{"predictions":[{"label":"7","index":7,"iterations":1,"residual":0.1}]}'
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(CONTENT), CONTENT)


class Idle(asyncio.Protocol):
    """The same answer to every request."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        self._transport.write(ANSWER)


async def main(port: int) -> None:
    """Answer until a signal."""
    listening = await asyncio.get_running_loop().create_server(Idle, "127.0.0.1", port)
    await listening.serve_forever()


uvloop.run(main(int(sys.argv[1])))
