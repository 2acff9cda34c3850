"""How the command line talks to a running coordinator: over its admin service, as an operator."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from quorate.errors import QuorateError, StateError

__all__ = ["At", "OperatorFolder", "operator"]

At = typer.Option(
    None,
    "--at",
    metavar="DIR|HOST:PORT",
    envvar="QUORATE_COORDINATOR",
    help="A running coordinator: its folder on this machine, or the address of its admin service.",
)
OperatorFolder = typer.Option(
    None,
    "--operator",
    metavar="DIR",
    help="The operator's keys; by default those in the coordinator's folder.",
    file_okay=False,
)

_TIMEOUT_S = 60.0


@contextlib.contextmanager
def operator(at: str | None, folder: Path | None) -> Iterator[Any]:
    """A stub of the admin service whose errors are `QuorateError`s.

    Raises:
        StateError: no coordinator runs there.
        QuorateError: it refused, with its reason.
    """
    import grpc

    from quorate.wire.admin_pb2_grpc import AdminServiceStub

    if at is None:
        raise StateError("which coordinator? --at names its folder, or the address of its admin service")
    address, name = at, None
    if ":" not in at:
        address, name = _found(Path(at))
        if folder is None and name is not None:
            folder = Path(at) / "operator"
    if folder is None:
        channel = grpc.insecure_channel(address)
    else:
        from quorate.identity import Holder

        holder = Holder(folder)
        key, chain = holder.tls_pair
        options = [("grpc.ssl_target_name_override", name)] if name is not None else []
        channel = grpc.secure_channel(
            address, grpc.ssl_channel_credentials(holder.root.pem, key, chain), options
        )
    with channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=10.0)
            yield AdminServiceStub(channel)
        except grpc.FutureTimeoutError:
            raise StateError(
                f"no coordinator answers at {address}; is it running, and are these an operator's keys?"
            ) from None
        except grpc.RpcError as error:
            raise QuorateError(error.details() or str(error.code())) from None


def _found(folder: Path) -> tuple[str, str | None]:
    from quorate.coordination import ADMIN_FILE

    try:
        found = json.loads((folder / ADMIN_FILE).read_bytes())
        return str(found["address"]), found["name"]
    except FileNotFoundError:
        raise StateError(
            f"no coordinator runs in {folder}: `quorate coordinator run {folder}` starts one"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StateError(f"{folder / ADMIN_FILE} can't be read: {error}") from error
