"""What to say when a disk or an object store refuses: one line with what, where and what to do.

The one decision behind this module: the operating system's error number decides the advice; object stores often give
none, so their error names are looked for in the text.
"""

from __future__ import annotations

import errno

_DENIED = "permission denied: check owner and mode, or choose another place"
_FILE_IN_THE_WAY = "a file stands where a folder is needed: move it or choose another place"
NOT_FOUND = "not found: check the path"
_ADVICE = {
    errno.ENOENT: NOT_FOUND,
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.EROFS: "the file system is read-only: choose another place",
    errno.ENOSPC: "no space left on the device: free some or choose another place, then run again",
    errno.EDQUOT: "the disk quota is used up: free some space or choose another place, then run again",
    errno.EFBIG: "larger than this process or file system may write: raise the limit or make smaller files",
    errno.ENOTDIR: _FILE_IN_THE_WAY,
    errno.EEXIST: _FILE_IN_THE_WAY,
    errno.EISDIR: "a folder stands where a file is needed: move it or choose another place",
    errno.EMFILE: "too many open files: raise `ulimit -n`",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
}
_REMOTE_ADVICE = {
    "NO_SUCH_BUCKET": "there is no such bucket: check its name",
    "ACCESS_DENIED": "access denied: check the credentials in the environment and the bucket's policy",
    "INVALID_ACCESS_KEY_ID": "access denied: the access key in the environment is not known there",
    "SIGNATURE_DOES_NOT_MATCH": "access denied: the secret key in the environment does not fit",
    "NETWORK_CONNECTION": "the object store cannot be reached: check network, region and endpoint",
    "SLOW_DOWN": "the object store asks to slow down: use fewer workers, then run again",
    "OAuth2 access token": "no credentials for the object store: log in, or set GOOGLE_APPLICATION_CREDENTIALS",
}


class StorageError(OSError):
    """A file cannot be read or written: one line that says what, where and what to do."""


class NotFound(StorageError):
    """Nothing stands at the path."""


def explain(action: str, where: str, error: Exception) -> StorageError:
    """The error as one line, e.g. "cannot write runs/a.tar: no space left ..."; a `StorageError` stays what it is."""
    if isinstance(error, StorageError):
        return error
    number = getattr(error, "errno", None)
    detail = " ".join(str(error).split())
    advice = _ADVICE.get(number) if isinstance(number, int) else None
    if advice is None:
        advice = next((text for code, text in _REMOTE_ADVICE.items() if code in detail), detail[:300])
    kind = NotFound if number == errno.ENOENT else StorageError
    return kind(f"cannot {action} {where}: {advice}")
