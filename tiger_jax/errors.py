"""Errors whose message is for the user, and the exit code each one stands for."""


class UserFacingError(Exception):
    """A failure to report as one line, without a traceback."""

    exit_code = 1


class InputError(UserFacingError, ValueError):
    """Bad input or usage: says what is wrong, where, and what to do."""

    exit_code = 2


class LockedError(UserFacingError):
    """Another run holds the work directory."""

    exit_code = 3


class Preempted(UserFacingError):
    """Stopped by a signal after saving; the same command resumes."""

    exit_code = 4
