"""The errors of this package. All of them are `Error`; their texts say what to do."""

from __future__ import annotations


class Error(Exception):
    """Something that this package reports to its user."""


class NotLaunched(Error):
    """The script was started by hand, without an agent or a simulation beside it."""


class Refused(Error):
    """The agent refused the connection: a used token, or no common version."""


class ProtocolError(Error):
    """The program at the other end broke the rules of the channel; the connection is closed."""


class ModelError(Error, ValueError):
    """A model, or a file of a model, that cannot be used; the text names the tensor."""


class TaskError(Error, ValueError):
    """A task was answered wrongly, such as twice or without a loss."""


class BinaryNotFound(Error):
    """The command `consortia` is not installed where this package looks for it."""


class CommandFailed(Error):
    """The command `consortia` ended with an error.

    `exit_code` is its exit code, listed in the reference of the commands.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class RequestFailed(Error):
    """The admin port answered with an error, or not at all.

    `status` is the HTTP status, 0 where there was no answer.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class RunFailed(Error):
    """A run that was watched ended without being finished."""
