"""The linter's rules, and the names that are against them."""

from __future__ import annotations

from typing import Final


def _words(text: str) -> list[str]:
    return text.split()


_ACTIVITY: Final = "do it in an activity and await the activity here"

RULES: Final[dict[str, str]] = {
    "io": _ACTIVITY,
    "random": "use `random`, `secrets` or `workflow.random()`, which replay in a workflow",
    "sleep": "use `await asyncio.sleep(...)`, which is a durable timer in a workflow",
    "thread": _ACTIVITY,
    "environment": "pass it as an argument, or read it in an activity or `workflow.side_effect`",
    "import-time": "take it inside the workflow, where it replays, or pass it as an argument",
    "set-order": "iterate over `sorted(...)`, or use a list or a dict",
    "global-state": "keep it in the workflow's own variables, or in `self`",
    "swallowed-cancel": "catch `Exception`, or raise again what was caught",
}
"""Rules and their remedies."""

_IO: Final = _words(
    """
    open input io.open asyncio.open_connection asyncio.start_server asyncio.open_unix_connection
    asyncio.start_unix_server fcntl.fcntl fcntl.flock fcntl.lockf ftplib.FTP imaplib.IMAP4
    mmap.mmap os.chdir os.chmod os.chown os.link os.listdir os.makedirs os.mkdir os.open os.putenv
    os.remove os.rename os.replace os.rmdir os.scandir os.stat os.symlink os.truncate os.unlink
    os.unsetenv os.utime os.walk poplib.POP3 urllib.request.Request urllib.request.urlopen
    webbrowser.open
    """
)

_THREAD: Final = _words(
    """
    asyncio.create_subprocess_exec asyncio.create_subprocess_shell asyncio.to_thread os.fork
    os.forkpty os.kill os.popen os.posix_spawn os.startfile os.system pty.spawn signal.pthread_kill
    """
)

_ENVIRONMENT: Final = _words(
    """
    os.cpu_count os.getcwd os.getenv os.getpid os.uname platform.node socket.gethostname
    """
)

CALLS: Final[dict[str, str]] = {
    **dict.fromkeys(_IO, "io"),
    **dict.fromkeys(_THREAD, "thread"),
    **dict.fromkeys(_ENVIRONMENT, "environment"),
    "time.sleep": "sleep",
    "random.SystemRandom": "random",
    "glob.escape": "",
}
"""Calls by full name and their rule; "" is allowed although its module is not."""

MODULES: Final[dict[str, str]] = {
    **dict.fromkeys(
        _words(
            """
            requests httpx aiohttp urllib3 boto3 botocore sqlite3 psycopg psycopg2 asyncpg pymongo
            redis smtplib ftplib http.client socket shutil tempfile glob
            """
        ),
        "io",
    ),
    **dict.fromkeys(_words("subprocess threading multiprocessing concurrent.futures"), "thread"),
}
"""Modules of which every call is against a rule."""

PREFIXES: Final[dict[str, str]] = {"os.exec": "thread", "os.spawn": "thread"}
"""Families of functions that differ in their last letters."""

METHODS: Final[dict[str, str]] = {
    "run_in_executor": "thread",
    "call_soon_threadsafe": "thread",
    "read_text": "io",
    "write_text": "io",
    "read_bytes": "io",
    "write_bytes": "io",
}
"""Methods that are against a rule, whatever they are called on."""

ENVIRONMENT: Final = frozenset({"os.environ", "os.environb", "sys.argv"})
"""What differs from process to process, by whatever way it is read."""

_MOMENT_CALLS: Final = frozenset(
    _words(
        """
        datetime.datetime.now datetime.datetime.utcnow datetime.datetime.today datetime.date.today
        os.urandom time.asctime time.ctime time.gmtime time.localtime time.monotonic
        time.monotonic_ns time.perf_counter time.perf_counter_ns time.process_time
        time.process_time_ns time.strftime
        time.thread_time time.thread_time_ns time.time time.time_ns uuid.uuid1 uuid.uuid4
        """
    )
)
_MOMENT_MODULES: Final = ("random.", "secrets.")

MUTATORS: Final = frozenset(
    {"append", "extend", "insert", "add", "update", "pop", "remove", "clear", "setdefault"}
)
"""Methods that change what they are called on."""

KEEP_ORDER: Final = frozenset({"list", "tuple", "enumerate", "iter", "map", "filter", "zip"})
"""Builtins whose outcome has the order of what they are given."""

FORGET_ORDER: Final = frozenset({"sorted", "set", "frozenset", "min", "max", "any", "all"})
"""Builtins whose outcome is the same in whatever order they are given things."""


def rule_of_call(name: str) -> str:
    """The rule that a call of this full name is against; "" for none."""
    if name in CALLS:
        return CALLS[name]
    for module, rule in MODULES.items():
        if name.startswith(f"{module}."):
            return rule
    for prefix, rule in PREFIXES.items():
        if name.startswith(prefix):
            return rule
    return ""


def is_momentary(name: str) -> bool:
    """Does a call of this full name give another value in each process?"""
    return (
        name in _MOMENT_CALLS
        or name.startswith(_MOMENT_MODULES)
        or rule_of_call(name) == "environment"
    )
