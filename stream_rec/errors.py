"""The one exception that a person's mistake raises."""


class UserError(Exception):
    """What a person can put right: a bad path, a wrong setting, a busy port, a broker that is down.

    Its message is one line that says what to do. The command line prints it and exits with code 2, without a traceback.
    """


class NoBrokerError(UserError):
    """No Kafka broker answers; it may yet."""
