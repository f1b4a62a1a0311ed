"""posted(): a request as an endpoint gets it, without a server."""

import asyncio
from types import SimpleNamespace

from starlette.types import Message

from app.http.fast_route import FastRequest
from app.settings import Settings


def posted(body: bytes, media_type: str, settings: Settings) -> FastRequest:
    """The request of a client that has sent a body, and waits for the answer."""
    messages = [{"type": "http.request", "body": body}]

    async def receive() -> Message:
        if not messages:
            await asyncio.sleep(60)
        return messages.pop()

    app = SimpleNamespace(state=SimpleNamespace(server=SimpleNamespace(settings=settings)))
    headers = {b"content-type": media_type.encode()}
    scope = {"type": "http", "query_string": b"", "headers": [*headers.items()], "headers_by_name": headers, "app": app}
    return FastRequest(scope, receive)
