"""The right to work on a run key: a lease of the ledger, which a thread renews as long as the work goes on.

The lock of the run key (`Attempts.exclusive`) tells processes of one host apart at once; the lease does so where hosts
share a ledger but no locks. Neither alone keeps a process that stood still from going on where it was: what does is the
expected version of the table, and the lease's token in each commit (see `SnapshotStore.publish`).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from sereno.exceptions import BusyError, LeaseLostError, LedgerError
from sereno.interfaces import RunLedger
from sereno.ledger import BEAT_SECONDS, LEASE_SECONDS, Lease, holder_here, is_here, lease_name

PATIENCE = 30.0  # seconds to wait for the lease of another host, which may be dead
LOOK_SECONDS = 0.5  # between two looks at it


class HeldLease:
    """The lease of a run, while it is renewed."""

    def __init__(self, ledger: RunLedger, lease: Lease, acquired_at: float) -> None:
        self.lease = lease
        self._ledger = ledger
        self._renewed_at = acquired_at
        self._lost = False
        self._error: LedgerError | None = None  # of the newest renewal
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def check(self) -> None:
        """Raise LeaseLostError where somebody else may work on the run by now. Asks only where nothing was heard for long."""
        if self._age > LEASE_SECONDS:
            self._renew()  # it stood still, and perhaps nobody missed it
        if self._lost:
            raise LeaseLostError(
                "Another process has taken this run over, because this one did not move for too long. Nothing was published "
                "by this one; see `sereno runs` for what became of the other."
            )
        if self._age > LEASE_SECONDS:
            raise LeaseLostError(
                f"The lease of this run could not be renewed for {self._age:.0f} seconds, so that another process may have "
                f"taken the run over: {self._error} Nothing was published by this run. Start it again: it goes on where it was."
            )

    @property
    def _age(self) -> float:
        return _now() - self._renewed_at

    def confirm(self) -> None:
        """Renew it now, and raise LeaseLostError as `check` does. A ledger that fails is no harm for a while."""
        self._renew()
        self.check()

    def lost(self) -> LeaseLostError | None:
        """Ask whether somebody else has it by now."""
        self._renew()
        try:
            self.check()
        except LeaseLostError as error:
            return error if self._lost else None
        return None

    def end(self) -> None:
        """Give it back. A ledger that cannot be told finds out when the time is over."""
        self._over.set()
        self._thread.join(BEAT_SECONDS)
        with contextlib.suppress(LedgerError):
            self._ledger.release(self.lease)

    def _beat(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            self._renew()

    def _renew(self) -> None:
        began = _now()  # before it is asked for: the answer may take its time
        try:
            is_held = self._ledger.renew(self.lease, LEASE_SECONDS)
        except LedgerError as error:
            self._error = error
            return
        if is_held:
            self._renewed_at, self._error = began, None
        else:
            self._lost = True


@contextlib.contextmanager
def hold(ledger: RunLedger, model: str, run_key: str) -> Iterator[HeldLease]:
    """Hold the lease of a run key. The caller holds the lock of the key, too.

    Raises BusyError where a process on another host holds it and goes on doing so, LedgerError where nobody knows.
    """
    busy = (
        f"A run of model {model!r} for this interval is going on already on host {{host}} (pid {{pid}}). "
        "Wait for it, or end it."
    )
    with hold_name(ledger, lease_name(model, run_key), busy, PATIENCE) as held:
        yield held


@contextlib.contextmanager
def hold_name(ledger: RunLedger, name: str, busy: str, patience: float) -> Iterator[HeldLease]:
    """Hold a lease of any name, as `hold` does. `busy`: what BusyError says, with `{host}` and `{pid}` of who has it."""
    began, lease = _acquire(ledger, name, busy, patience)
    held = HeldLease(ledger, lease, began)
    held.start()
    try:
        yield held
    finally:
        held.end()


def _acquire(ledger: RunLedger, name: str, busy: str, patience: float) -> tuple[float, Lease]:
    here = holder_here()
    deadline = _now() + patience
    while True:
        began = _now()
        lease = ledger.acquire(name, here, LEASE_SECONDS)
        if lease is None and (other := ledger.holder(name)) is not None:
            host, pid = other.holder.split(":")[:2]
            if is_here(other.holder):
                # it would hold the lock of that name, which is ours: it was killed
                lease = ledger.acquire(name, here, LEASE_SECONDS, by_force=True)
            elif _now() > deadline:
                raise BusyError(busy.format(host=host, pid=pid))
        if lease is not None:
            return began, lease
        time.sleep(min(LOOK_SECONDS, patience / 10))


def _now() -> float:
    """Seconds that go on while the machine sleeps, as those of a lease do."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
