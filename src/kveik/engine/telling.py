"""The thread that makes texts: the engine's own where its caller steps it.

Here is the exception boundary of one request (invariant 12): what its text or its sink raises ends
it alone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from kveik.engine.delivery import Delivery
from kveik.engine.inbox import Inbox, Over
from kveik.engine.outbox import News
from kveik.errors import KveikError, fault

_log = logging.getLogger(__name__)


class Telling:
    """Sends what the outbox brings, and lets the inbox know which requests have ended."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    def tell(self, batch: Sequence[News]) -> None:
        """Send events. Never raises."""
        inbox = self._inbox
        for handle, delivery, told in batch:
            reason = delivery.reason(told)
            if reason is not None:  # counted first: whoever hears of the ending finds it counted
                inbox.ended(handle, reason)
            try:
                choice = delivery.tell(told)
                if choice is not None:
                    inbox.report(Over(handle, choice))
            except Exception as error:
                _log.error("a request failed while its events were sent: %s", fault(error))
                inbox.ended(handle, "error", instead=reason)
                inbox.report(Over(handle, None))
                _try_to_fail(delivery, error)


def _try_to_fail(delivery: Delivery, error: Exception) -> None:
    """Tell a request that it failed; a sink that raises again is left alone."""
    try:
        delivery.fail(as_told(error))
    except Exception as second:
        _log.debug("the sink of a failed request failed too: %s", fault(second))


def as_told(error: Exception) -> KveikError:
    """The error itself where it is meant for callers."""
    if isinstance(error, KveikError):
        return error
    return KveikError(f"the request failed ({type(error).__name__})")
