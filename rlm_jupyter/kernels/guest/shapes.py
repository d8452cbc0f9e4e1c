"""Shapes: of which type each part of a value is, told beside the data and never in it. What all who write them share.

Standard library only: the supervisor imports this for the names of packages, and so it is part of each start.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol

PACKAGES = ("numpy", "pandas", "pyarrow", "polars")
"""Those whose values have shapes of their own, where the host has the package, too."""
PLAIN = 0
"""The shape of data that JSON gives back exactly."""

Encoded = tuple[Any, Any]
"""A shape, and the data beside it."""


class Inexact(Exception):
    """A value that cannot go out with its type."""


class Coder(Protocol):
    """What encodes the parts of a value, and keeps what is bytes."""

    packages: Collection[str]

    def encode(self, value: Any) -> Encoded:
        """Encode one part."""

    def items(self, values: Any) -> Encoded:
        """Encode many: one shape where all are plain, else one for each."""

    def section(self, data: Any) -> int:
        """Keep bytes; give their number."""


def zone(tz: Any) -> Any:
    """Tell a time zone: None, seconds from UTC (with a name of its own), or the key of a named zone."""
    import datetime

    if tz is None:
        return None
    if type(tz) is datetime.timezone:
        seconds, name = tz.utcoffset(None).total_seconds(), tz.tzname(None)
        return seconds if name == datetime.timezone(tz.utcoffset(None)).tzname(None) else [seconds, name]
    if type(tz).__module__.startswith("dateutil.") and type(tz).__name__ in ("tzutc", "tzoffset"):
        return tz.utcoffset(None).total_seconds()
    key = getattr(tz, "key", None) or getattr(tz, "zone", None)  # of zoneinfo, of pytz
    if type(key) is str:
        return key
    raise Inexact("a time zone of its own")
