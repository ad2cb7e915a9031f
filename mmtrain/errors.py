"""The one error that a user sees. It holds no logic about any room of the house."""

from typing import Any


class UserError(Exception):
    """A mistake that the user can mend: printed without a stack trace, exit status 2.

    Reads ``where: what came; what was wanted; what to do.``
    """

    status = 2

    def __init__(self, where: str, came: str, wanted: str, fix: str) -> None:
        self.where, self.came, self.wanted, self.fix = where, came, wanted, fix
        super().__init__(f"{where}: {came}; {wanted}; {fix.rstrip('.')}.")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.where, self.came, self.wanted, self.fix)  # whole, from a worker or another machine


class Failure(UserError):
    """What was asked for was right and went wrong on the way (a full disk, a loss that is not finite, memory, a dead
    process): exit status 1."""

    status = 1


class Stopped(Exception):
    """A run that was asked to stop, and has saved: exit status 75 (try again later) for a scheduler's signal, 130 for
    the user's."""

    def __init__(self, text: str, status: int) -> None:
        self.status = status
        super().__init__(text)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.status)


class UserErrors(UserError):
    """Several faults found in one pass, reported together (a config is checked whole)."""

    def __init__(self, errors: list[UserError]) -> None:
        self.errors = errors
        Exception.__init__(self, "\n".join(str(e) for e in errors))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.errors,)
