"""A worker in the test's own process, with a leader whom the test plays."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.node.leader import Leader, leading


@pytest.fixture
async def leader(settings) -> AsyncIterator[Leader]:
    """A worker of 100 CPUs that hosts nothing yet."""
    async with leading(settings) as made:
        yield made
