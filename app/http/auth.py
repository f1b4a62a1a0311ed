"""Who may ask: dependencies of the routes that want a key, where the server has keys."""

from fastapi import Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.http.api_keys import Keyring
from app.http.errors import Refusal
from app.http.state import Server


class _Key(HTTPBearer):
    """A scheme of OpenAPI and its check in one: FastAPI then has one dependency to solve in every request, and not four."""

    def __init__(self) -> None:
        super().__init__(auto_error=False, scheme_name="key")


class _User(_Key):
    """Lets pass whoever has a key of any kind; everybody if users need none. Raises a ``Refusal``, 401."""

    async def __call__(self, request: Request) -> None:  # type: ignore[override]
        server: Server = request.app.state.server
        if server.keys.users.wanted:
            _check(await super().__call__(request), server.keys.users, server.keys.admins)


class _Admin(_Key):
    """Lets pass whoever has an admin key; everybody if there are no keys of any kind.

    Raises a ``Refusal``: 401 without a key, 403 with a user's.
    """

    async def __call__(self, request: Request) -> None:  # type: ignore[override]
        server: Server = request.app.state.server
        users, admins = server.keys.users, server.keys.admins
        if users.wanted or admins.wanted:
            key = _check(await super().__call__(request), users, admins)
            if not admins.holds(key):
                raise Refusal(403, "authorization: expected an admin key, got a user's")


user, admin = _User(), _Admin()


def _check(bearer: HTTPAuthorizationCredentials | None, *rings: Keyring) -> str:
    """The key, if it is one."""
    if bearer is not None:
        matches = [ring.holds(bearer.credentials) for ring in rings]
        if any(matches):
            return bearer.credentials
    got = "none" if bearer is None else "one that the server does not know"
    raise Refusal(401, f"authorization: expected Bearer and a key, got {got}", {"www-authenticate": "Bearer"})
