"""Temporal's messages without Temporal's SDK.

The messages are in the package ``temporalio``, which on import loads its native core and all that
belongs to it: more than half a second that no message needs. So its package is made known here with
nothing in it but the way to its subpackages. The rest is loaded when somebody asks for it; a
program that also uses Temporal's SDK notices nothing.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pkgutil import extend_path
from types import ModuleType
from typing import Any, Final

_NAME: Final = "temporalio"


class _Package(ModuleType):
    """The package before its own code has run."""

    __spec__: ModuleSpec

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__version__":
            raise AttributeError(name)  # the import machinery looks around
        self.__class__ = ModuleType  # type: ignore[assignment]
        assert self.__spec__.loader is not None
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


def prepare() -> None:
    """Let ``temporalio.api`` be imported alone. Call it before the first such import."""
    if _NAME in sys.modules:
        return
    spec = find_spec(_NAME)
    if spec is None or spec.loader is None or spec.submodule_search_locations is None:
        return  # the import that follows says what is wrong
    package = _Package(_NAME)
    package.__spec__ = spec
    package.__file__ = spec.origin
    package.__package__ = _NAME
    package.__loader__ = spec.loader
    package.__path__ = extend_path(list(spec.submodule_search_locations), _NAME)
    sys.modules[_NAME] = package


prepare()
