"""What tests of the scaler share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from qserve.config import Settings
from qserve.store.connection import endpoint_of
from qserve.store.link import Link
from tests.controller.stage import Stage


@pytest.fixture
async def stage(settings: Settings) -> AsyncIterator[Stage]:
    """A scaler and its server."""
    link = Link(endpoint_of(settings), "test-scaler")
    yield Stage(link, settings.namespace)
    await link.close()
