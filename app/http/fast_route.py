"""Fast routes: FastAPI describes them, but its layers, which cost a fifth of a prediction, are not on their way."""

from collections.abc import Callable, Sequence
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from app.engine_client.errors import EngineError
from app.http.auth import AccessRoute
from app.http.errors import ApiError, respond

MAX_PATHS_REMEMBERED = 128
"""Clients name models, and there is no end of names."""


class FastRequest(Request):
    """A request whose headers and body are read in a third of Starlette's time."""

    _whole: bytes | None = None

    def header(self, name: bytes, default: str = "") -> str:
        """The first header of a name in lower case."""
        value: bytes | None = self.scope["headers_by_name"].get(name)
        return default if value is None else value.decode("latin-1")

    async def body(self) -> bytes:
        """The whole body."""
        if self._whole is not None:
            return self._whole
        pieces, more = [], True
        while more:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            pieces.append(message.get("body", b""))
            more = message.get("more_body", False)
        self._whole = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        return self._whole


class FastRoute(AccessRoute):
    """A route whose endpoint takes a request only, and which depends on its access decision only."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        if len(self.dependencies) != 1:
            raise TypeError(f"{path}: must have no dependency except its access decision (got {len(self.dependencies)})")

    async def answer(self, request: Request, receive: Receive, send: Send) -> None:
        """Check the key, call the endpoint, and send its response, or one for the error that it raises."""
        try:
            await self.access(request)
            response = await self.endpoint(request)
        except (ApiError, EngineError, ClientDisconnect) as error:
            response = await respond(request, error)
        await response(request.scope, receive, send)


class FastRoutes:
    """Middleware: answers what a fast route matches, and leaves the rest, wrong methods included, to FastAPI."""

    def __init__(self, app: ASGIApp, routes: Sequence[FastRoute]) -> None:
        self._app = app
        self._routes = routes
        self._found: dict[tuple[str, str], Scope] = {}  # what matching adds to the scope, by root path and path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            matched = self._found.get((scope["root_path"], scope["path"])) or self._match(scope)
            if matched:
                scope.update(matched)
                await scope["route"].answer(FastRequest(scope, receive, send), receive, send)
                return
        await self._app(scope, receive, send)

    def _match(self, scope: Scope) -> Scope:
        """What the first route that matches adds to a scope; nothing if none does."""
        for route in self._routes:
            match, matched = route.matches(scope)
            if match == Match.FULL:
                if len(self._found) >= MAX_PATHS_REMEMBERED:
                    self._found.clear()
                self._found[scope["root_path"], scope["path"]] = matched
                return dict(matched)
        return {}
