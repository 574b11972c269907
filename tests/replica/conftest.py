"""A room for replicas in the test's own process."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.replica.room import Room


@pytest.fixture
async def room(settings) -> AsyncIterator[Room]:
    """No servers yet."""
    made = Room(settings)
    yield made
    await made.close()
