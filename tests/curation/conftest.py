"""Fixtures of several files of tests of curation."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator

import pytest

from tests.curation.web import Internet


@pytest.fixture
def opener_of_before() -> Iterator[None]:
    before = urllib.request._opener  # type: ignore[attr-defined]
    yield
    urllib.request._opener = before  # type: ignore[attr-defined]


@pytest.fixture
def internet(monkeypatch: pytest.MonkeyPatch) -> Internet:
    return Internet(monkeypatch)
