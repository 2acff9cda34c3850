"""How many bytes of long frames are on their way in at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from quorate.server.devices.streams import FrameBudget


def budgeted(most_bytes: int, story: Callable[[FrameBudget], Awaitable[None]]) -> None:
    async def told() -> None:
        async with asyncio.timeout(10):
            await story(FrameBudget(most_bytes))

    asyncio.run(told())


async def settled() -> None:
    """Everybody has come as far as they can."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_who_does_not_fit_waits_in_the_order_of_arrival() -> None:
    async def story(budget: FrameBudget) -> None:
        assert await budget.take(60) == 60
        large, small = asyncio.create_task(budget.take(70)), asyncio.create_task(budget.take(10))
        await settled()
        assert not large.done()
        assert not small.done()  # it would fit, but it came later: the large one must not wait for ever
        budget.give(60)
        assert await asyncio.gather(large, small) == [70, 10]

    budgeted(100, story)


def test_a_frame_above_the_budget_comes_alone() -> None:
    async def story(budget: FrameBudget) -> None:
        assert await budget.take(1000) == 100
        other = asyncio.create_task(budget.take(1))
        await settled()
        assert not other.done()
        budget.give(100)
        assert await other == 1

    budgeted(100, story)


@pytest.mark.parametrize("turn_has_come", [False, True])
def test_who_leaves_while_it_waits_holds_up_nobody(turn_has_come: bool) -> None:
    """Its stream ends: before its turn, or at the moment when it comes and before it knows."""

    async def story(budget: FrameBudget) -> None:
        await budget.take(100)
        leaver, next_one = asyncio.create_task(budget.take(100)), asyncio.create_task(budget.take(100))
        await settled()
        if turn_has_come:
            budget.give(100)
            leaver.cancel()
        else:
            leaver.cancel()
            await settled()
            budget.give(100)
        assert await next_one == 100
        assert leaver.cancelled()

    budgeted(100, story)
