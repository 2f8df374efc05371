"""The `temporal` command line as a client: what it prints, as lines that can be compared."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from referee.env import Env
from referee.record import Names

BINARY = Path(sys.executable).parent / "temporal"
COMMAND_TIMEOUT_S = 30.0

_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?( ?Z| UTC)?")
_ADDRESS = re.compile(r"127\.0\.0\.1:\d+")

_DURATION = re.compile(r"\(\d+m?s\)")
_NO_TIME = re.compile(r"(0001|1970)-01-01T")

_DROPPED = frozenset(
    {"taskId", "version", "historySizeBytes", "historyLength", "stateTransitionCount"}
    | {"executionDuration", "durationMillis", "coreUsedFlags", "ownerHostName", "requestId"}
)
"""What depends on a server's encoding, on its load, or on the moment."""

_MASKED = frozenset({"taskToken", "nextPageToken", "stackTrace"})
"""Present on both sides; the contents are the server's or the machine's own."""


async def run(env: Env, *arguments: str, output: str = "json") -> tuple[int, str, str]:
    """One command: its exit status, what it printed, and what it complained of.

    Raises:
        TimeoutError: it did not end.
    """
    address = env.client.service_client.config.target_host
    command = [str(BINARY), *arguments, "--address", address, "--output", output]
    command += ["--identity", "referee", "--disable-config-file", "--disable-config-env"]
    command += ["--color", "never", "--time-format", "iso"]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(COMMAND_TIMEOUT_S):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise TimeoutError(f"{arguments} has not ended") from None
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def note(env: Env, *arguments: str, output: str = "json", unordered: bool = False) -> Any:
    """Run a command, write down what it prints, and return that (parsed, if it is JSON).

    `unordered`: a list, or the lists of an object, may come in any order.
    """
    status, out, err = await run(env, *arguments, output=output)
    shown = " ".join(arguments).replace(env.name, "…")
    env.lines.append(f"$ temporal {env.names.mask(shown, 'argument')}")
    if status:
        env.lines.append(f"  exit status {status}")
    env.lines += [f"  ! {line}" for line in text_lines(err, env.names)]
    try:
        parsed = json.loads(out)
    except ValueError:
        env.lines += [f"  {line}" for line in text_lines(out, env.names)]
        return out
    if unordered:
        for found in parsed.values() if isinstance(parsed, dict) else [parsed]:
            if isinstance(found, list):
                found.sort(key=lambda one: json.dumps(one, sort_keys=True))
    env.lines += [f"  {line}" for line in json_lines(parsed, env.names)]
    return parsed


def text_lines(text: str, names: Names) -> Iterator[str]:
    """Lines of text without what differs from server to server."""
    for line in text.splitlines():
        masked = _DURATION.sub("(<duration>)", _masked(line, names, "id"))
        if masked.strip():
            yield re.sub(r"\s+", " ", masked).strip()


def json_lines(value: Any, names: Names, path: str = "") -> Iterator[str]:
    """One line per leaf: its path and its value."""
    name = path.rpartition(".")[2]
    if name in _MASKED:
        yield f"{path}: <{name}>"
    elif isinstance(value, dict):
        for key in sorted(value):
            if key not in _DROPPED:
                inner = names.mask(key, "key")
                yield from json_lines(value[key], names, f"{path}.{inner}" if path else inner)
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from json_lines(one, names, f"{path}[{index}]")
    elif isinstance(value, str) and (value == "0s" or _NO_TIME.match(value)):
        return  # none, as if it were absent
    elif isinstance(value, str):
        yield f"{path}: {json.dumps(_masked(value, names, name), ensure_ascii=False)}"
    else:
        yield f"{path}: {value!r}"


def _masked(text: str, names: Names, field: str) -> str:
    return _ADDRESS.sub("<address>", _TIME.sub("<time>", names.mask(text, field)))
