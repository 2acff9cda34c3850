"""The admin service: how an operator talks to a running coordinator (`quorate/wire/admin.proto`).

Who may: with TLS, whoever shows an operator's certificate, which no device has; without, whoever is on this machine.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import grpc

from quorate.errors import PlanError, QuorateError
from quorate.wire import admin_pb2 as pb

__all__ = ["ADMIN", "Enroller", "HostedRuns", "RunEvent", "RunState", "admin_methods"]

log = logging.getLogger(__name__)

ADMIN = "quorate.v1.AdminService"

Result = TypeVar("Result")


@dataclass(frozen=True)
class RunState:
    """Where a hosted run stands.

    Args:
        run: its id.
        task: its task's name.
        status: `waiting` (for devices), `running`, `paused`, `stopped`, `finished` or `failed`.
        committed: rounds.
        rounds: that are to be committed.
        waiting_devices: that could be drawn now.
        population: that a round needs.
        epsilons: `released` and `server`; empty when no privacy is claimed.
        created: UTC, ISO 8601.
        reason: why it failed, or was aborted last.
    """

    run: str
    task: str
    status: str
    committed: int
    rounds: int
    waiting_devices: int
    population: int
    epsilons: Mapping[str, float]
    created: str
    reason: str = ""

    @property
    def over(self) -> bool:
        """Whether nothing more will happen unless it is started again."""
        return self.status in ("stopped", "finished", "failed")


@dataclass(frozen=True)
class RunEvent:
    """A round that ended, or (round 0) a change of the run's status."""

    status: str
    round: int = 0
    version: int = 0
    outcome: str = ""
    cohort: int = 0
    survivors: int = 0
    lost: Mapping[str, int] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    epsilons: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""


class HostedRuns(Protocol):
    """The runs of a coordinator (`quorate.hosting`). Every method may block, and may raise `QuorateError`."""

    def start(self, plan: str) -> RunState:
        """Starts a plan's run, or starts it again; TOML."""
        ...

    def states(self) -> Sequence[RunState]:
        """Of every hosted run."""
        ...

    def state(self, run: str) -> RunState:
        """Of one, by its id or how that begins."""
        ...

    def pause(self, run: str) -> RunState:
        """After the open round."""
        ...

    def resume(self, run: str) -> RunState:
        """After a pause or a stop."""
        ...

    def stop(self, run: str) -> RunState:
        """The open round is aborted."""
        ...

    def watch(self, run: str, told: Callable[[RunEvent], None]) -> Callable[[], None]:
        """Has a function told of what happens from now on; returns what ends that."""
        ...


class Enroller(Protocol):
    """What an operator may do to an authority (`quorate.server.authority`)."""

    def token(self, valid: datetime.timedelta, note: str = "") -> Any:
        """A token for one device: `text` and `expires`."""
        ...

    def revoke(self, name: str, reason: str) -> None:
        """Nobody believes a device any more."""
        ...


def admin_methods(
    runs: HostedRuns, enroller: Enroller | None, may: Callable[[Any], object] = lambda context: None
) -> Mapping[str, Any]:
    """The service's handlers, for a `Listener`.

    Args:
        runs: are administered.
        enroller: makes tokens and revokes; None where the authority is somebody else's.
        may: raises `QuorateError` if who asks is no operator.
    """

    async def answer(context: Any, question: Callable[[], Result]) -> Result:
        def asked() -> Result:
            return question()

        try:
            may(context)
        except QuorateError as refused:
            log.warning("who asks is no operator", extra={"reason": str(refused)})
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(refused))
        try:
            return await asyncio.get_running_loop().run_in_executor(None, asked)
        except PlanError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            raise
        except QuorateError as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
            raise

    def own() -> Enroller:
        if enroller is None:
            raise QuorateError("the enrolment authority is independent of this coordinator: ask it")
        return enroller

    async def start(request: pb.StartRunRequest, context: Any) -> pb.RunStatus:
        return _status(await answer(context, lambda: runs.start(request.plan)))

    async def list_(request: pb.ListRunsRequest, context: Any) -> pb.RunList:
        return pb.RunList(runs=map(_status, await answer(context, runs.states)))

    def of_a_run(question: Callable[[str], RunState]) -> Any:
        async def method(request: pb.RunRequest, context: Any) -> pb.RunStatus:
            return _status(await answer(context, lambda: question(request.run)))

        return _unary(method, pb.RunRequest)

    async def watch(request: pb.RunRequest, context: Any) -> AsyncIterator[pb.RunEvent]:
        loop, events = asyncio.get_running_loop(), asyncio.Queue[RunEvent]()

        def told(event: RunEvent) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        state = await answer(context, lambda: runs.state(request.run))
        end = await answer(context, lambda: runs.watch(state.run, told))
        try:
            state = await answer(context, lambda: runs.state(state.run))
            event = RunEvent(state.status, version=state.committed, reason=state.reason)
            while True:
                yield _event(event)
                if event.status in ("stopped", "finished", "failed"):
                    return
                event = await events.get()
        finally:
            end()

    async def issue(request: pb.IssueTokenRequest, context: Any) -> pb.Token:
        valid = datetime.timedelta(seconds=request.valid_s)
        token = await answer(context, lambda: own().token(valid, request.note))
        return pb.Token(token=token.text, expires=token.expires.isoformat(timespec="seconds"))

    async def revoke(request: pb.RevokeRequest, context: Any) -> pb.RevokeReply:
        await answer(context, lambda: own().revoke(request.device, request.reason))
        return pb.RevokeReply()

    return {
        "StartRun": _unary(start, pb.StartRunRequest),
        "ListRuns": _unary(list_, pb.ListRunsRequest),
        "ShowRun": of_a_run(runs.state),
        "PauseRun": of_a_run(runs.pause),
        "ResumeRun": of_a_run(runs.resume),
        "StopRun": of_a_run(runs.stop),
        "WatchRun": grpc.unary_stream_rpc_method_handler(watch, pb.RunRequest.FromString, _serialised),
        "IssueToken": _unary(issue, pb.IssueTokenRequest),
        "Revoke": _unary(revoke, pb.RevokeRequest),
    }


def _unary(method: Callable[..., Any], request: Any) -> Any:
    return grpc.unary_unary_rpc_method_handler(method, request.FromString, _serialised)


def _serialised(message: Any) -> bytes:
    serialised: bytes = message.SerializeToString()
    return serialised


def _status(state: RunState) -> pb.RunStatus:
    return pb.RunStatus(
        run=state.run,
        task=state.task,
        status=state.status,
        committed=state.committed,
        rounds=state.rounds,
        waiting_devices=state.waiting_devices,
        population=state.population,
        epsilon_released=state.epsilons.get("released"),
        epsilon_server=state.epsilons.get("server"),
        created=state.created,
        reason=state.reason,
    )


def _event(event: RunEvent) -> pb.RunEvent:
    return pb.RunEvent(
        round=event.round,
        version=event.version,
        outcome=event.outcome,
        cohort=event.cohort,
        survivors=event.survivors,
        lost=dict(event.lost),
        metrics=dict(event.metrics),
        epsilon_released=event.epsilons.get("released"),
        epsilon_server=event.epsilons.get("server"),
        reason=event.reason,
        status=event.status,
    )
