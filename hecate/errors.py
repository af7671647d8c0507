"""Every error that Hecate raises on purpose.

HecateError               something of ours went wrong            exit code 1
├── CollectiveFailure     a peer died or did not answer           exit code 1
└── UserError             the input can be mended by the user     exit code 2
    ├── ConfigError       an unknown key, a value out of range
    ├── DataError         a missing, empty or unreadable corpus
    ├── TokenizerError    a tokenizer that does not fit
    ├── ModelError        a model that cannot be built, read or trained here
    ├── PlacementError    experts that cannot be placed on these ranks
    ├── CheckpointError   a missing, truncated or foreign checkpoint
    ├── StorageError      a full disk, a folder that cannot be written
    ├── UsageError        a call of ours that comes too early, too late or twice
    └── MeshError         a port in use, a world that does not form
"""


class HecateError(Exception):
    """One message in four parts: what happened, what was found and expected, how to mend it."""

    exit_code = 1

    def __init__(self, what: str, *, got: str = "", expected: str = "", fix: str = "") -> None:
        self.what = what
        self.got = got
        self.expected = expected
        self.fix = fix
        parts = [what]
        parts += [f"  got:      {got}"] if got else []
        parts += [f"  expected: {expected}"] if expected else []
        parts += [f"  fix:      {fix}"] if fix else []
        super().__init__("\n".join(parts))


class CollectiveFailure(HecateError):
    """A collective failed because another rank died, hung or disagreed."""


class UserError(HecateError):
    """Something the user can mend; the command ends with exit code 2 and no traceback."""

    exit_code = 2


class ConfigError(UserError):
    """A configuration key or value that does not stand."""


class DataError(UserError):
    """A corpus that is missing, empty or unreadable."""


class TokenizerError(UserError):
    """A tokenizer that is missing or does not fit the model."""


class ModelError(UserError):
    """A model that cannot be built, read or trained here."""


class PlacementError(UserError):
    """Experts that cannot be placed on these ranks."""


class CheckpointError(UserError):
    """A checkpoint that is missing, truncated or of another model."""


class StorageError(UserError):
    """A disk that is full or a folder that cannot be written."""


class UsageError(UserError):
    """A call in the wrong place of somebody's own training loop."""


class MeshError(UserError):
    """A process group that cannot be formed."""
