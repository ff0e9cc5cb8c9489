"""Guard a run against experiment trackers: a tracker that fails is left out, and the run continues."""

from collections.abc import Callable
from typing import Any

from transformers import Trainer

INTEGRATIONS = "transformers.integrations"


class Guarded:
    """Wraps a tracker's callback: its first failure is reported and stops the tracker instead of the run.

    Args:
        callback: The callback of the tracker.
        notify: Called with a sentence about the failure.
    """

    def __init__(self, callback: Any, notify: Callable[[str], None]) -> None:
        self._callback, self._notify, self._failed = callback, notify, False

    def __getattr__(self, name: str) -> Any:
        wrapped = getattr(self._callback, name)
        if not name.startswith("on_"):
            return wrapped

        def event(*args: Any, **kwargs: Any) -> Any:
            if self._failed:
                return None
            try:
                return wrapped(*args, **kwargs)
            except Exception as error:  # the errors of trackers have many types
                self._failed = True
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                name = type(self._callback).__name__.removesuffix("Callback")
                self._notify(f"the tracker {name} failed ({reason}): the run continues without it")
                return None

        return event


def guard_trackers(trainer: Trainer, notify: Callable[[str], None]) -> None:
    """Guard every tracker of a ``Trainer``.

    Args:
        trainer: The trainer.
        notify: Called with a sentence about a failure.
    """
    handler = trainer.callback_handler
    handler.callbacks[:] = [
        Guarded(callback, notify) if type(callback).__module__.startswith(INTEGRATIONS) else callback
        for callback in handler.callbacks
    ]
