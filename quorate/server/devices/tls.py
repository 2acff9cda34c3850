"""TLS of a coordinator's addresses: gRPC credentials that take a renewed certificate without a restart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from quorate.identity import Holder

__all__ = ["server_credentials"]


def server_credentials(holder: Holder, *, mutual: bool) -> grpc.ServerCredentials:
    """Credentials with whatever certificate the holder has when a connection comes.

    Args:
        holder: of the server; it may be renewed at any time.
        mutual: whether who connects must show a certificate of the same authority.

    Raises:
        IdentityRefused: the holder has no certificate yet.
    """
    configuration, read = _configurations(holder, mutual)
    return grpc.dynamic_ssl_server_credentials(configuration, read, require_client_authentication=mutual)


def _configurations(
    holder: Holder, mutual: bool
) -> tuple[grpc.ServerCertificateConfiguration, Callable[[], Any]]:
    last = holder.tls_pair

    def configuration() -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([last], holder.root.pem if mutual else None)

    def read() -> Any:  # None where nothing has changed
        nonlocal last
        if holder.tls_pair == last:
            return None
        last = holder.tls_pair
        return configuration()

    return configuration(), read
