"""The tree of errors: what the user can mend (exit 2) and what is ours (exit 1).

Every message is one line that says what is wrong, where, what was found and what would do.
"""


class CompressError(Exception):
    """Anything `compress` raises on purpose; exit status 1 unless a subclass says otherwise."""

    exit_status = 1


class UserFault(CompressError):
    """Something the user can mend."""

    exit_status = 2


class BadSettings(UserFault):
    """A setting that cannot be right, found before any work.

    Args:
        message: what is wrong, what was found, what would do.
        key: the setting's name within its table, so that the pipeline can add file and line.
    """

    def __init__(self, message: str, *, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


class BadPipeline(UserFault):
    """All faults of one pipeline file, a line each."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class BadModel(UserFault):
    """A model folder or hub id that cannot be loaded, or must not be."""


class BadData(UserFault):
    """A data set that is missing, empty, too short or of the wrong shape."""


class Unavailable(UserFault):
    """A library or a device that is asked for and not here."""


class Busy(UserFault):
    """Another process works in the run folder."""


class NoSpace(UserFault):
    """The disk is full; what was finished is kept."""


class Tampered(UserFault):
    """A finished folder whose files no longer match their recorded digests."""


class Diverged(UserFault):
    """Training whose loss became NaN, infinite or ran away; the last good state is kept."""


class NoGain(UserFault):
    """A pass that does not gain what the pipeline expects of it."""


class Interrupted(UserFault):
    """Stopped from the keyboard; the run resumes where it was."""


class BrokenPromise(CompressError):
    """A pass or an exporter did not do what it declares."""


class ParityError(BrokenPromise):
    """An engine whose outputs differ from the model's."""
