"""Authentication: API keys, and routes that cannot forget to ask for them."""

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import structlog
from fastapi import Request
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic import SecretStr

from app.http.errors import ApiError
from app.settings import Settings

log = structlog.get_logger(__name__)


class ApiKeyError(Exception):
    """API keys are required by the settings, but none can be read."""


class KeySet:
    """The hashes of one role's keys, separated by commas or white space; ``ApiKeyError`` if keys are set, but none is found."""

    def __init__(self, setting: str, keys: SecretStr | None, file: Path | None) -> None:
        self._setting, self._keys, self._file = setting, keys, file
        self.required = keys is not None or file is not None
        self._hashes = self._read()

    def reload(self) -> None:
        """Read the file again; if that fails, keep the keys."""
        try:
            self._hashes = self._read()
        except ApiKeyError as error:
            log.error("API key reload failed, previous keys kept", error=str(error))

    def __contains__(self, key: bytes) -> bool:
        """Whether a key is one of these, in a time that depends neither on which nor on how much of it is right."""
        digest = _hash(key)
        return any([hmac.compare_digest(digest, known) for known in self._hashes])  # noqa: C419 - all are compared

    def _read(self) -> frozenset[bytes]:
        flag = f"--{self._setting.replace('_', '-')}"
        texts = [] if self._keys is None else [self._keys.get_secret_value()]
        if self._file is not None:
            flag = f"{flag}-file"
            try:
                texts.append(self._file.read_text("utf-8"))
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else error
                raise ApiKeyError(f"{flag} must be a readable file of API keys (got {self._file}: {reason})") from error
        hashes = frozenset(
            _hash(key.encode(errors="surrogateescape")) for text in texts for key in re.split(r"[\s,]+", text) if key
        )
        if self.required and not hashes:
            raise ApiKeyError(f"{flag} must hold at least one API key (got none)")
        return hashes


class ApiKeys:
    """The server's API keys, those of users and those of admins. Raises an ``ApiKeyError`` as ``KeySet``."""

    def __init__(self, settings: Settings) -> None:
        self.users = KeySet("api_keys", settings.api_keys, settings.api_keys_file)
        self.admins = KeySet("admin_keys", settings.admin_keys, settings.admin_keys_file)


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


class _KeyCheck(HTTPBearer):
    """A security scheme and its check in one, so that FastAPI has one dependency to solve per request.

    It leaves in the request's scope who sent it, ``client_id``, as an opaque text: the API key where one is required, else the
    address.
    """

    def __init__(self, *, admin: bool) -> None:
        super().__init__(auto_error=False, scheme_name="API key")
        self._admin = admin

    async def __call__(self, request: Request) -> None:  # type: ignore[override]
        keys: ApiKeys = request.app.state.server.api_keys
        if not (keys.users.required or (self._admin and keys.admins.required)):
            request.scope["client_id"] = _address_id(request.client.host if request.client else "")
            return
        bearer = await super().__call__(request)
        key = bearer.credentials.encode("latin-1") if bearer else b""  # the bytes of the header, UTF-8 as the keys are
        if not any([key in keys.users, key in keys.admins]):
            got = "none" if bearer is None else "an unknown key"
            raise ApiError(401, f"authorization: must be Bearer and an API key (got {got})", {"www-authenticate": "Bearer"})
        if self._admin and key not in keys.admins:
            raise ApiError(403, "authorization: must be an admin key (got a user key)")
        request.scope["client_id"] = _hash(key).hex()[:16]


@lru_cache
def _address_id(host: str) -> str:
    """One for all addresses of an IPv6 network of 64 bits, which is what one client has."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # a Unix socket, or a test
        return hashlib.sha256(host.encode()).hexdigest()[:16]
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    return hashlib.sha256(address.packed[:8]).hexdigest()[:16]


async def anyone() -> None:
    """Access decision: no key is needed."""


user = _KeyCheck(admin=False)
"""Access decision: any key, if the server requires keys of users. Raises an ``ApiError`` (401)."""
admin = _KeyCheck(admin=True)
"""Access decision: an admin key, if the server has any keys. Raises an ``ApiError`` (401 without a key, 403 with a user's)."""


class AccessRoute(APIRoute):
    """A route that depends on exactly one of ``anyone``, ``user`` and ``admin``, its ``access``; else a ``TypeError``."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        decisions = [one.dependency for one in self.dependencies if one.dependency in (anyone, user, admin)]
        if len(decisions) != 1:
            raise TypeError(f"{path}: must depend on exactly one of anyone, user and admin (got {len(decisions)} of them)")
        self.access: Any = decisions[0]
