"""bench.paper's data: what is kept of catalogues, how it is split, where files come from."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tarfile
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from paper_data import SPLITS, catalogue, fill_images, fill_packages, write_idx

from bench.paper import fashion, fetch, packages, pairs
from bench.paper.catalogues import Pair, clean, is_german_catalogue, read


@pytest.mark.parametrize(
    ("english", "german", "expected"),
    [
        ("_Open file", "Datei ö_ffnen", ("Open file", "Datei öffnen")),
        ("Save &As", "Speichern &unter", ("Save As", "Speichern unter")),
        ("~Close window", "Fenster ~schließen", ("Close window", "Fenster schließen")),
        ("Copy & paste", "Kopieren & einfügen", ("Copy & paste", "Kopieren & einfügen")),
        (
            "set MY_OWN_PATH first",
            "zuerst MY_OWN_PATH",
            ("set MY_OWN_PATH first", "zuerst MY_OWN_PATH"),
        ),
        ("<b>Open</b> the file\n", "<b>Öffne</b> die\nDatei", ("Open the file", "Öffne die Datei")),
        ("Delete %d files", "%d Dateien löschen", ("Delete %d files", "%d Dateien löschen")),
        ("Window title", "Fenstertitel", ("Window title", "Fenstertitel")),
    ],
)
def test_cleaned(english: str, german: str, expected: tuple[str, ...]) -> None:
    (found,) = clean([Pair(english, german)])
    assert found[: len(expected)] == expected


@pytest.mark.parametrize(
    ("english", "german"),
    [
        ("%s: %d (%s)", "%s: %d, %s"),
        ("<b></b>", "<i></i>"),
        ("{name} $1 %(size)s", "$1 {name} %(size)s"),
        ("File", "Datei"),  # one word teaches no order
        ("No change", "No change"),
        ("word " * 17, "Wort " * 5),
        ("long " * 15 + "x" * 60, "lang " * 15 + "x" * 60),
        ("A note", "Eine sehr lange Anmerkung hierzu"),
    ],
)
def test_left_out(english: str, german: str) -> None:
    assert not list(clean([Pair(english, german)]))


def test_the_first_translation_stands() -> None:
    found = list(clean([Pair("Open it", "Öffnen"), Pair("_Open it", "Aufmachen")]))
    assert found == [("Open it", "Öffnen")]


def test_catalogues_are_read(tmp_path: Path) -> None:
    made = catalogue({"Open file": "Datei öffnen", "Not yet": ""})
    made.append(type(made[0])(msgid="Fuzzy one", msgstr="Unscharf", flags=["fuzzy"]))
    made.save(str(tmp_path / "de.po"))
    made.save_as_mofile(str(tmp_path / "de.mo"))
    for name in ("de.po", "de.mo"):
        assert list(read(tmp_path / name)) == [("Open file", "Datei öffnen")]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("usr/share/locale/de/LC_MESSAGES/git.mo", True),
        ("usr/share/wordpress/languages/de_DE.mo", True),
        ("usr/share/locale/de_AT/LC_MESSAGES/git.mo", False),
        ("usr/share/locale/nl/LC_MESSAGES/git.mo", False),
        ("usr/share/doc/de/README.txt", False),
    ],
)
def test_german_catalogues(path: str, expected: bool) -> None:
    assert is_german_catalogue(PurePosixPath(path)) is expected


def package(folder: Path, name: str, messages: dict[str, str]) -> fetch.Package:
    (folder / name).mkdir()
    catalogue(messages).save_as_mofile(str(folder / name / "de.mo"))
    return fetch.Package(name, "1", "00", folder / name)


def test_no_string_is_in_two_splits(tmp_path: Path) -> None:
    given = {
        "training": [package(tmp_path, "a", {"Open file": "Datei öffnen"})],
        "test": [
            package(tmp_path, "b", {"Open _File…": "Öffne Datei", "Close file": "Schließe Datei"})
        ],
    }
    found = pairs.split_pairs(given)
    assert found.splits["test"] == [("Close file", "Schließe Datei")]
    assert [(s["name"], s["messages"], s["pairs"]) for s in found.sources] == [
        ("a", 1, 1),
        ("b", 2, 1),
    ]


def test_packages_belong_to_one_split() -> None:
    names = [name for members in packages.SPLITS.values() for name in members]
    assert len(set(names)) == len(names)


def test_the_set_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "SPLITS", SPLITS)
    fill_packages(tmp_path)
    first = pairs.load(tmp_path)
    assert {split: len(found) for split, found in first.splits.items()} == {
        "training": 40,
        "validation": 20,
        "test": 20,
    }
    monkeypatch.setattr(pairs, "fetch", None)  # a second call needs none
    assert pairs.load(tmp_path) == first
    assert first.facts()["packages"][0]["version"] == "1:2-3"


def test_other_packages_are_another_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "SPLITS", SPLITS)
    fill_packages(tmp_path)
    first = pairs.load(tmp_path)
    monkeypatch.setattr(pairs, "SPLITS", SPLITS | {"training": ("beta",)})
    found = pairs.load(tmp_path)
    assert len(found.splits["training"]) == 20
    assert pairs.kept(tmp_path) == found  # as processes of runs read it
    monkeypatch.setattr(pairs, "SPLITS", SPLITS)
    assert pairs.load(tmp_path) == first


def test_pairs_of_an_interrupted_build_are_not_taken_for_those_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "SPLITS", SPLITS)
    fill_packages(tmp_path)
    first = pairs.load(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(pairs, "SPLITS", SPLITS | {"training": ("beta",)})
        patched.setattr(pairs, "write_json", None)
        with pytest.raises(TypeError):
            pairs.load(tmp_path)
    assert pairs.load(tmp_path) == first


def script(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """apt-get and dpkg-deb of a package whose archive is a tar file alone."""
    archive = tmp_path / "archive"
    with tarfile.open(archive, "w") as tar:
        for name in ("./usr/share/de/a.mo", "./usr/share/fr/a.mo"):
            member = tarfile.TarInfo(name)
            member.size = 2
            tar.addfile(member, io.BytesIO(b"hi"))
    tools = tmp_path / "tools"
    script(tools, "apt-get", f'echo "$3" >> {tmp_path}/asked; cp {archive} "$3_1%3a2-3_all.deb"')
    script(tools, "dpkg-deb", 'cat "$2"')
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    return tmp_path


def test_a_package_is_fetched_once(debian: Path) -> None:
    for _ in range(2):
        found = fetch.fetch("thing", debian / "cache", is_german_catalogue)
        assert [path.read_bytes() for path in found.files()] == [b"hi"]
        assert found.files()[0].parts[-3:] == ("share", "de", "a.mo")
        assert found.version == "1:2-3"
        assert len(found.sha256) == 64
    assert (debian / "asked").read_text() == "thing\n"


def test_an_interrupted_fetch_starts_anew(debian: Path) -> None:
    left = debian / "cache" / "thing" / "half.mo"
    left.parent.mkdir(parents=True)
    left.touch()
    assert left not in fetch.fetch("thing", debian / "cache", is_german_catalogue).files()


def test_errors_name_the_remedy(debian: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(debian / "tools", "apt-get", 'echo "E: Unable to locate package $3" >&2; exit 100')
    with pytest.raises(RuntimeError, match=r"Unable to locate package thing; .*apt-get update"):
        fetch.fetch("thing", debian / "cache", is_german_catalogue)
    monkeypatch.setenv("PATH", str(debian / "nowhere"))
    with pytest.raises(RuntimeError, match="there is no apt-get; apt-get and dpkg-deb of Debian"):
        fetch.fetch("thing", debian / "cache", is_german_catalogue)


@pytest.mark.parametrize("text", ['echo "not a Debian archive" >&2; exit 2', "printf x; exit 2"])
def test_a_package_that_cannot_be_unpacked(debian: Path, text: str) -> None:
    script(debian / "tools", "dpkg-deb", text)
    why = "not a Debian archive" if "Debian" in text else "no reason given"
    with pytest.raises(RuntimeError, match=f"^thing_1.*deb cannot be unpacked: .*{why}"):
        fetch.fetch("thing", debian / "cache", is_german_catalogue)


def test_without_dpkg_deb(debian: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (debian / "tools" / "dpkg-deb").unlink()
    (debian / "tools" / "cp").symlink_to(shutil.which("cp"))
    monkeypatch.setenv("PATH", str(debian / "tools"))
    with pytest.raises(RuntimeError, match="there is no dpkg-deb; apt-get and dpkg-deb of Debian"):
        fetch.fetch("thing", debian / "cache", is_german_catalogue)


def test_a_package_without_wanted_files_is_no_success(debian: Path) -> None:
    for _ in range(2):  # nor is it one when asked again
        with pytest.raises(RuntimeError, match="thing 1:2-3 has none of the files wanted"):
            fetch.fetch("thing", debian / "cache", lambda path: False)


class FullDiskError(OSError):
    pass


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """On which no JSON file gets its name."""
    rename = Path.replace

    def full(path: Path, target: Path) -> Path:
        if target.suffix == ".json":
            raise FullDiskError
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", full)


def test_facts_are_written_whole_or_not_at_all(debian: Path, full_disk: None) -> None:
    with pytest.raises(FullDiskError):
        fetch.fetch("thing", debian / "cache", is_german_catalogue)
    assert not (debian / "cache" / "thing.json").exists()


def test_sources_are_written_whole_or_not_at_all(
    tmp_path: Path, full_disk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = pairs.Pairs({"test": [Pair("Open file", "Datei öffnen")]}, [{"name": "a"}])
    monkeypatch.setattr(pairs, "_build", lambda cache, line: built)
    with pytest.raises(FullDiskError):
        pairs.load(tmp_path)
    assert not (tmp_path / "pairs" / "sources.json").exists()


def test_corrupt_facts_are_named(tmp_path: Path) -> None:
    (tmp_path / "thing.json").write_text('{"version": ')
    with pytest.raises(RuntimeError, match=r"thing\.json: not JSON; remove the file"):
        fetch.fetch("thing", tmp_path, is_german_catalogue)


def test_corrupt_sources_are_named(tmp_path: Path) -> None:
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "sources.json").write_bytes(b"\xff")
    with pytest.raises(RuntimeError, match=r"sources\.json: not JSON; remove the file"):
        pairs.load(tmp_path)


def test_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "fashion"
    monkeypatch.setattr(fashion, "INSTALLED", folder)
    fill_images(folder)
    where, facts = fashion.folder(tmp_path)
    assert where == folder
    assert facts["version"] == "installed"
    found = fashion.load(where, "training")
    assert found.pixels.shape == (60, 1, 28, 28)
    assert found.labels[:12].tolist() == [*range(10), 0, 1]
    assert found.pixels[3].unique().item() == pytest.approx((75 / 255 - 0.2860) / 0.3530)


def test_bad_images(tmp_path: Path) -> None:
    fill_images(tmp_path / "a")
    write_idx(tmp_path / "a" / "train-labels-idx1-ubyte.gz", np.zeros(59))
    with pytest.raises(ValueError, match="60 images but 59 labels"):
        fashion.load(tmp_path / "a", "training")
    path = tmp_path / "a" / "t10k-labels-idx1-ubyte.gz"
    write_idx(path, np.zeros((2, 3)))
    assert fashion.read_idx(path).shape == (2, 3)
    path.write_bytes(gzip.compress(b"\0\0\x0d\1\0\0\0\0"))
    with pytest.raises(ValueError, match="not an idx file of unsigned bytes"):
        fashion.read_idx(path)
