"""Files of a Debian package: from where it is installed, else downloaded, without root."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from .files import read_json, write_json

REMEDY = (
    "apt-get and dpkg-deb of Debian or Ubuntu are needed, and package lists with this package "
    "(as root: apt-get update)"
)


@dataclass(frozen=True)
class Package:
    """A package whose wanted files lie in ``folder``."""

    name: str
    version: str
    sha256: str
    """Of the .deb."""
    folder: Path

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file())


def fetch(name: str, cache: Path, is_wanted: Callable[[PurePosixPath], bool]) -> Package:
    """The package's files that are wanted; a second call finds them in ``cache``.

    Raises:
        RuntimeError: it cannot be downloaded or unpacked here, or has no wanted file; the message
            says what is needed.
    """
    folder = cache / name
    facts = folder.with_suffix(".json")
    if not facts.exists():
        package = _fetched(name, folder, is_wanted)
        write_json({"version": package.version, "sha256": package.sha256}, facts)
    return Package(name=name, folder=folder, **read_json(facts))


def _fetched(name: str, folder: Path, is_wanted: Callable[[PurePosixPath], bool]) -> Package:
    with tempfile.TemporaryDirectory(dir=_made(folder.parent)) as temporary:
        archive = _download(name, Path(temporary))
        if folder.exists():  # of a call that was interrupted
            shutil.rmtree(folder)
        _extract(_unpacked(archive), folder, is_wanted)
        version, _, _ = archive.name.removeprefix(f"{name}_").rpartition("_")
        sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    package = Package(name, version.replace("%3a", ":"), sha256, folder)
    if not package.files():
        raise RuntimeError(
            f"{name} {package.version} has none of the files wanted of it; another package can "
            "take its place in bench/paper/packages.py"
        )
    return package


def summary(package: Package) -> dict[str, str]:
    """What a record keeps of it."""
    return {key: value for key, value in asdict(package).items() if key != "folder"}


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _download(name: str, folder: Path) -> Path:
    _call(["apt-get", "-q", "download", name], f"{name} cannot be downloaded", cwd=folder)
    (archive,) = folder.glob("*.deb")
    return archive


def _unpacked(archive: Path) -> Path:
    """Its files as a tar file, which lies beside it."""
    path = archive.with_suffix(".tar")
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    with path.open("wb") as file:
        _call(command, f"{archive.name} cannot be unpacked", stdout=file)
    return path


def _call(command: list[str], failure: str, **options: Any) -> None:
    """Runs a command; where that fails, a RuntimeError says why and what is needed."""
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True} | options
    try:
        subprocess.run(command, check=True, **options)
    except FileNotFoundError:
        raise RuntimeError(f"{failure}: there is no {command[0]}; {REMEDY}") from None
    except subprocess.CalledProcessError as error:
        why = " ".join(error.stderr.split()) or "no reason given"
        raise RuntimeError(f"{failure}: {why}; {REMEDY}") from None


def _extract(archive: Path, folder: Path, is_wanted: Callable[[PurePosixPath], bool]) -> None:
    """The wanted regular files alone: packages bring pictures and manuals, too."""
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if member.isfile() and ".." not in path.parts and is_wanted(path):
                target = folder / path.relative_to(".") if path.parts else folder
                source = tar.extractfile(member)
                assert source is not None  # it is a regular file
                _made(target.parent)
                target.write_bytes(source.read())
