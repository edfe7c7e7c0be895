"""The one exception that a person's mistake raises."""

import logging
import os
import sys
from typing import NoReturn


class UserError(Exception):
    """What a person can put right: a bad path, a wrong setting, a busy port, a broker that is down.

    Its message is one line that says what to do. The command line prints it and exits with code 2, without a traceback.
    """


class NoBrokerError(UserError):
    """No Kafka broker answers; it may yet."""


class ModelError(UserError):
    """A model that gives no answers: what it computes are not numbers, or not the same with cached keys and values."""


def end_process(error: UserError) -> NoReturn:
    """Ends the process at once as the command line does: one line and exit code 2.

    For a process that can't stop in order, because its tasks wait for something that never comes.
    """
    print(f"stream-rec: {error}", file=sys.stderr)  # noqa: T201 - the command's output
    logging.shutdown()
    os._exit(2)
