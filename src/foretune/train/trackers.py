"""Guard a run against experiment trackers: a missing one is refused, and one that fails later does not end the run."""

from collections.abc import Callable
from typing import Any

from transformers import Trainer, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from foretune.errors import InputError
from foretune.task.problems import error_text

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
                reason = error_text(error, 200)
                name = type(self._callback).__name__.removesuffix("Callback")
                self._notify(f"the tracker {name} failed ({reason}): the run continues without it")
                return None

        return event


def check_trackers(args: TrainingArguments, where: str) -> None:
    """Check that the trackers in ``report_to`` can be used.

    Args:
        args: The training arguments.
        where: Name of the training section in messages.

    Raises:
        InputError: A tracker cannot be used; usually its package is not installed.
    """
    for name in args.report_to or []:
        try:
            for tracker in get_reporting_integration_callbacks([name]):
                tracker()
        except Exception as error:  # the errors of trackers have many types
            reason = error_text(error, 200)
            raise InputError(
                f"{where}.report_to", f"{name} cannot be used ({reason})", "install what it names, or write none"
            ) from error


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
