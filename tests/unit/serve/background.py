"""Background tasks of the code under test."""

import asyncio


async def finished(name: str) -> None:
    """Wait until no task of this name is left on the running event loop."""
    while tasks := [task for task in asyncio.all_tasks() if task.get_name() == name]:
        await asyncio.gather(*tasks)
