"""`[limits]`: what the application's training may use, and how it is held to that.

Training runs in a child process of the lowest priority. Its memory is bounded twice: the kernel refuses it more private
memory than the limit (`RLIMIT_DATA`: man 2 getrlimit), and the parent ends it when what is resident passes the limit,
all its own children counted. There is no cgroup in this: it needs no privilege.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from quorate.sections import Section

__all__ = ["Limits"]


class Limits(Section):
    """`[limits]` of a policy.

    Args:
        memory_mb: the most memory that training may use, in megabytes of 10^6 bytes.
        training_s: how long it may take, in seconds; the round's own deadline holds as well.
        largest_frame_mb: the longest message that is taken from a coordinator; None: what the largest installed task
            needs.
    """

    memory_mb: Annotated[int, Field(ge=64)] = 2048
    training_s: Annotated[float, Field(gt=0)] = 1800.0
    largest_frame_mb: Annotated[int | None, Field(ge=1)] = None
