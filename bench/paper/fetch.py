"""Files of a Debian package: from where it is installed, else downloaded, without root."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

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
        RuntimeError: it cannot be downloaded here; the message says what is needed.
    """
    folder = cache / name
    facts = folder.with_suffix(".json")
    if not facts.exists():
        with tempfile.TemporaryDirectory(dir=_made(cache)) as temporary:
            archive = _download(name, Path(temporary))
            version, _, _ = archive.name.removeprefix(f"{name}_").rpartition("_")
            if folder.exists():  # of a call that was interrupted
                shutil.rmtree(folder)
            _extract(archive, folder, is_wanted)
            sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
            facts.write_text(json.dumps({"version": version.replace("%3a", ":"), "sha256": sha256}))
    return Package(name=name, folder=folder, **json.loads(facts.read_text()))


def summary(package: Package) -> dict[str, str]:
    """What a record keeps of it."""
    return {key: value for key, value in asdict(package).items() if key != "folder"}


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _download(name: str, folder: Path) -> Path:
    command = ["apt-get", "-q", "download", name]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise RuntimeError(f"{name} cannot be downloaded: there is no apt-get; {REMEDY}") from None
    except subprocess.CalledProcessError as error:
        why = error.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise RuntimeError(f"{name} cannot be downloaded: {why[0]}; {REMEDY}") from None
    (archive,) = folder.glob("*.deb")
    return archive


def _extract(archive: Path, folder: Path, is_wanted: Callable[[PurePosixPath], bool]) -> None:
    """The wanted regular files alone: packages bring pictures and manuals, too."""
    with (
        subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE
        ) as unpacking,
        tarfile.open(fileobj=unpacking.stdout, mode="r|") as tar,
    ):
        for member in tar:
            path = PurePosixPath(member.name)
            if member.isfile() and ".." not in path.parts and is_wanted(path):
                target = folder / path.relative_to(".") if path.parts else folder
                source = tar.extractfile(member)
                assert source is not None  # it is a regular file
                _made(target.parent)
                target.write_bytes(source.read())
    _made(folder)
    if unpacking.returncode:
        raise RuntimeError(f"dpkg-deb could not unpack {archive.name}: {unpacking.returncode}")
