"""Targets as messages show them. Whatever else a message says of one, it shows it by `redacted`."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl

HIDDEN: Final = "…"

# What comes before and after the user and the password can be told from them only if no character
# stands there unescaped that could as well be a part of the password.
HOST: Final = r"(?:\[[\w:.%]+\]|[^:/?#@,\[\]]*)(?::\d*)?"
_CLEAR: Final = re.compile(
    r"(?P<scheme>[\w.+-]+)://"
    r"(?:(?P<user>[^:/?#@\[\]]*)(?::[^/?#@\[\]]*)?@)?"
    rf"(?P<hosts>{HOST}(?:,{HOST})*)"
    r"(?P<path>/[^?#@]*)?"
    r"(?:\?(?P<options>[^#@]*))?"
)


def redacted(target: str) -> str:
    """A target without password and options; if it is not clear where they are, only its scheme."""
    scheme, separator, _ = target.partition("://")
    if scheme.lower() in ("sqlite", "memory"):
        return target
    if not separator:
        return HIDDEN if re.search("[@=]", target) else target
    clear = _CLEAR.fullmatch(target)
    if clear is None:
        return f"{scheme}://{HIDDEN}" if re.fullmatch(r"[\w.+-]+", scheme) else HIDDEN
    user = f"{clear['user']}@" if clear["user"] else ""
    where = clear["hosts"] or dict(parse_qsl(clear["options"] or "")).get("host", "")
    return f"{scheme}://{user}{where}{clear['path'] or ''}"
