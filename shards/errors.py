"""What to say when a disk or an object store refuses: one line with what, where and what to do.

The one decision behind this module: the operating system's error number decides the advice; object stores often give
none, so their error names are looked for in the text.
"""

from __future__ import annotations

import errno
import re

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
_UNREACHED = "the object store cannot be reached: check network, region and endpoint"
_BUSY = "the object store asks to slow down: use fewer workers, then run again"
_OTHER_REGION = "the bucket is in another region: set AWS_REGION to the bucket's region"
NO_BUCKET = "there is no such bucket: check its name, and region and endpoint"
_REMOTE_ADVICE = {
    "NO_SUCH_BUCKET": NO_BUCKET,
    "NO_SUCH_KEY": NOT_FOUND,  # gone since it was opened
    "RESOURCE_NOT_FOUND": NOT_FOUND,
    "Bucket '": NO_BUCKET,  # where its region was asked for
    "ACCESS_DENIED": "access denied: check the credentials in the environment and the bucket's policy",
    "INVALID_ACCESS_KEY_ID": "access denied: the access key in the environment is not known there",
    "SIGNATURE_DOES_NOT_MATCH": "access denied: the secret key in the environment does not fit",
    "NETWORK_CONNECTION": _UNREACHED,
    "SLOW_DOWN": _BUSY,
    "HTTP status 503": _BUSY,  # answers to HEAD have no text
    "INTERNAL_FAILURE": "the object store has an error of its own: run again later",
    "HTTP status 5": "the object store has an error of its own: run again later",
    "HTTP status 301": _OTHER_REGION,
    "PermanentRedirect": _OTHER_REGION,
    "AuthorizationHeaderMalformed": _OTHER_REGION,
    "HTTP status 400": "the object store refuses the request: check credentials, session token, region and endpoint",
    "EXPIRED_TOKEN": "access denied: the session token in the environment has expired: get a new one",
    "INVALID_CLIENT_TOKEN_ID": "access denied: the access key or session token in the environment is not known there",
    "REQUEST_TIME_TOO_SKEWED": "the clock of this machine is wrong: set it, then run again",
    "OAuth2 access token": "no credentials for the object store: log in, or set GOOGLE_APPLICATION_CREDENTIALS",
}


# What passes by itself, by the names that Arrow and the stores give it. An upload that is gone may be one that was
# completed by a request whose answer was lost.
_PASSING = re.compile(
    r"SLOW_DOWN|INTERNAL_FAILURE|SERVICE_UNAVAILABLE|THROTTLING|NETWORK_CONNECTION|REQUEST_TIMEOUT|NO_SUCH_UPLOAD"
    r"|HTTP status (?:408|429|5\d\d)"
)


class StorageError(OSError):
    """A file cannot be read or written: one line that says what, where and what to do."""


class NotFound(StorageError):
    """Nothing stands at the path."""


class CutOff(StorageError):
    """A file is shorter than the bytes that are wanted of it."""


class Unavailable(StorageError):
    """An object store fails for a reason that may pass: the same call may succeed later."""

    @property
    def answered(self) -> bool:
        """Whether it was the store that refused, and not the way to it."""
        return _UNREACHED not in str(self)


def explain(action: str, where: str, error: Exception) -> StorageError:
    """The error as one line, e.g. "cannot write runs/a.tar: no space left ..."; a `StorageError` stays what it is."""
    if isinstance(error, StorageError):
        return error
    number = getattr(error, "errno", None)
    detail = " ".join(str(error).split())
    advice = _ADVICE.get(number) if isinstance(number, int) else None
    if advice is None:
        advice = next((text for code, text in _REMOTE_ADVICE.items() if code in detail), detail[:300])
    if number == errno.ENOENT or advice == NOT_FOUND:
        return NotFound(f"cannot {action} {where}: {advice}")
    kind = Unavailable if number is None and _PASSING.search(detail) else StorageError
    return kind(f"cannot {action} {where}: {advice}")
