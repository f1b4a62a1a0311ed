"""API keys: those of the users, and those of the admins, who may load and unload models."""

import hashlib
import hmac
import re
from pathlib import Path

import structlog
from pydantic import SecretStr

from app.settings import Settings

log = structlog.get_logger(__name__)


class KeysError(Exception):
    """There should be keys, but none can be read."""


class Keyring:
    """Some keys, of which only the hashes are kept.

    Args:
        name: of the setting that holds keys; with ``_file`` behind it, that of the one which names a file of more.
        keys: one or several, with commas or white space between them.
        file: likewise.

    Attributes:
        wanted: whether there are keys at all.

    Raises:
        KeysError: if the file cannot be read, or there is no key in what should hold some.
    """

    def __init__(self, name: str, keys: SecretStr | None, file: Path | None) -> None:
        self._name, self._keys, self._file = name, keys, file
        self.wanted = keys is not None or file is not None
        self._hashes = self._read()

    def reload(self) -> None:
        """Read the file again; if that fails, the keys remain as they are."""
        try:
            self._hashes = self._read()
        except KeysError as error:
            log.error("the keys were not read again; those of before hold", error=str(error))

    def holds(self, key: str) -> bool:
        """Whether a key is one of these, found out in a time that depends neither on which nor on how much of it is right."""
        digest = _hash(key)
        matches = [hmac.compare_digest(digest, known) for known in self._hashes]  # all, so that the first does not end it
        return any(matches)

    def _read(self) -> frozenset[bytes]:
        texts = [] if self._keys is None else [self._keys.get_secret_value()]
        if self._file is not None:
            try:
                texts.append(self._file.read_text())
            except (OSError, UnicodeDecodeError) as error:
                raise KeysError(f"{self._name}_file: expected a file of keys, got {self._file}: {error}") from error
        hashes = frozenset(_hash(key) for text in texts for key in re.split(r"[\s,]+", text) if key)
        if self.wanted and not hashes:
            raise KeysError(f"{self._name}{'_file' if self._file else ''}: expected one key at least, got none")
        return hashes


class Keys:
    """The server's keys, as the settings name them.

    Raises:
        KeysError: as ``Keyring``.
    """

    def __init__(self, settings: Settings) -> None:
        self.users = Keyring("api_keys", settings.api_keys, settings.api_keys_file)
        self.admins = Keyring("admin_keys", settings.admin_keys, settings.admin_keys_file)

    def reload(self) -> None:
        """Read the files again."""
        self.users.reload()
        self.admins.reload()


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
