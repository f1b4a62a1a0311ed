"""DirectRoute: a route that FastAPI describes, and does not stand in the way of."""

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from app.http.auth import user


class DirectRoute(APIRoute):
    """For what is asked thousands of times a second, by whoever is a ``user``.

    The endpoint gets the request and the texts in its path, and returns a ``Response``. FastAPI would look for dependencies,
    parameters and things to close in every request, for a sixth of what the request costs here. So an endpoint must not count
    on dependencies: who asks is checked here, and everything else it checks itself.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)  # which raises what becomes 405
            return
        request = Request(scope, receive, send)
        await user(request)
        response = await self.endpoint(request, **scope["path_params"])
        await response(scope, receive, send)
