"""Keeping up with the authority while a coordinator runs: the roll, and the coordinator's own certificate.

A thread looks every second into the records of the coordinator's own authority (a revocation may come from another
process), or every ten seconds at an independent authority's log; and every minute whether a certificate is due, also
because the clock was set. What fails is tried again: the thread must not end while the coordinator runs.
"""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType

from quorate.errors import IdentityRefused, StateError, Unreachable
from quorate.identity.logfile import KeptLog
from quorate.identity.remote import RemoteAuthority
from quorate.server.roll import Roll
from quorate.server.site import Site

__all__ = ["Keeper"]

log = logging.getLogger(__name__)

_OWN_S, _INDEPENDENT_S, _RENEWAL_S = 1.0, 10.0, 60.0


class Keeper:
    """A context manager: the thread ends with it.

    Args:
        site: the coordinator's folder.
        every_s: between looks; None for the usual.

    Raises:
        IdentityRefused: an independent authority's log does not continue the copy that is kept here.
    """

    def __init__(self, site: Site, every_s: float | None = None):
        self._site, self._stopped = site, threading.Event()
        self._remote: RemoteAuthority | None = None
        if site.authority is not None:
            self.roll = site.authority.roll
            self._every_s = every_s or _OWN_S
        else:
            assert site.authority_address is not None, "a site has an authority, or says where it is"
            self.roll = Roll(site.root, log=KeptLog(site.root, site.folder / "log.jsonl"))
            self._remote = RemoteAuthority(site.authority_address, site.root)
            self._every_s = every_s or _INDEPENDENT_S
        self._look()
        self._renew()
        self._thread = threading.Thread(target=self._run, name="enrolment", daemon=True)

    def __enter__(self) -> Keeper:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        renewed = time.monotonic()
        while not self._stopped.wait(self._every_s):
            try:
                self._look()
                if time.monotonic() - renewed >= _RENEWAL_S:
                    renewed = time.monotonic()
                    self._renew()
            except IdentityRefused as refused:
                # Of the log: nobody new is let in, and who was revoked stays out.
                log.error("the authority's log or its answer is not accepted", extra={"reason": str(refused)})
            except (StateError, OSError) as error:  # the disk is full, say
                log.error("the authority can't be asked, or a certificate kept", extra={"reason": str(error)})

    def _look(self) -> None:
        if self._remote is None:
            assert self._site.authority is not None
            self._site.authority.refresh()
            return
        try:
            self.roll.take(*self._remote.news(self.roll.size))
        except Unreachable as error:
            log.warning("the authority's log can't be read now", extra={"reason": str(error)})

    def _renew(self) -> None:
        try:
            self._site.renew(only_due=True)
        except Unreachable as error:
            log.warning("a certificate can't be renewed now", extra={"reason": str(error)})
