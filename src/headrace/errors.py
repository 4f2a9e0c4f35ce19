"""Every error that headrace raises, named by what must happen next.

::

    HeadraceError
    ├── InvalidError        fix the topology, the settings or the input, then start again
    │   ├── TopologyError       the topology cannot be run as it is written
    │   ├── SettingsError       an option or environment variable is wrong
    │   ├── NotFoundError       a topic, group, module or checkpoint does not exist
    │   └── RecordError         a record cannot be decoded or processed
    ├── RetriableError      nothing is lost: back off and try again
    ├── FencedError         another worker owns this now: drop the tasks and rejoin
    ├── CorruptError        stored bytes are damaged: discard local state and restore
    └── FatalError          this process cannot continue: exit with code 1

Messages say what happened, where (step, topic, partition, offset) and what to do. They never contain keys, values
or secrets.
"""

from __future__ import annotations


class HeadraceError(Exception):
    """The root of every error raised on purpose.

    Args:
        message: What happened and where, in one sentence.
        remedy: What the reader should do about it, in one sentence; shown after the message.
    """

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}. {self.remedy}" if self.remedy else self.message

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.remedy))


def _rebuild(kind: type[HeadraceError], message: str, remedy: str) -> HeadraceError:
    return kind(message, remedy=remedy)


class InvalidError(HeadraceError):
    """Something that a person wrote must be changed before this can work."""


class TopologyError(InvalidError):
    """The topology cannot be run as it is written."""


class SettingsError(InvalidError):
    """An option or an environment variable has a value that cannot be used."""


class NotFoundError(InvalidError):
    """A topic, group, module or checkpoint that was named does not exist."""


class RecordError(InvalidError):
    """A record cannot be decoded or processed; nothing behind it was committed."""


class RetriableError(HeadraceError):
    """A passing fault: nothing was lost, and the same call may succeed later."""


class FencedError(HeadraceError):
    """Another worker owns what this one tried to write; its tasks must be dropped without a trace."""


class CorruptError(HeadraceError):
    """Stored bytes fail their checksum or make no sense."""


class FatalError(HeadraceError):
    """The process cannot continue and should exit with code 1."""
