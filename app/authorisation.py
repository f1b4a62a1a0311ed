"""Who may ask: dependencies of the routes that want a key, where the server has keys."""

from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.errors import Refusal
from app.keys import Keyring
from app.server import ServerOfRequest

Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False, scheme_name="key"))]


async def user(server: ServerOfRequest, bearer: Bearer) -> None:
    """Let pass whoever has a key of any kind; everybody if users need none.

    Raises:
        Refusal: 401.
    """
    if server.keys.users.wanted:
        _check(bearer, server.keys.users, server.keys.admins)


async def admin(server: ServerOfRequest, bearer: Bearer) -> None:
    """Let pass whoever has an admin key; everybody if there are no keys of any kind.

    Raises:
        Refusal: 401 without a key, 403 with a user's.
    """
    users, admins = server.keys.users, server.keys.admins
    if users.wanted or admins.wanted:
        key = _check(bearer, users, admins)
        if not admins.holds(key):
            raise Refusal(403, "authorization: expected an admin key, got a user's")


def _check(bearer: HTTPAuthorizationCredentials | None, *rings: Keyring) -> str:
    """The key, if it is one."""
    if bearer is not None:
        matches = [ring.holds(bearer.credentials) for ring in rings]
        if any(matches):
            return bearer.credentials
    got = "none" if bearer is None else "one that the server does not know"
    raise Refusal(401, f"authorization: expected Bearer and a key, got {got}", {"www-authenticate": "Bearer"})
