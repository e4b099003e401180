"""``fetch`` and ``unpack``: damaged, forged and hostile files leave nothing behind."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import os
import stat
import tarfile
import threading
import zipfile
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastseg import data
from fastseg.pipelines import DataError
from fastseg.pipelines.tools.elsewhere import archives
from fastseg.pipelines.tools.elsewhere.archives import unpack
from fastseg.pipelines.tools.elsewhere.download import fetch

CONTENT = {"set/img/a.png": b"first" * 50, "set/img/b.png": b"second", "set/empty.txt": b""}


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("set")
        for name, content in files.items():
            entry = zipfile.ZipInfo("-")
            # the constructor takes no empty name
            entry.filename, entry.compress_type = name, zipfile.ZIP_DEFLATED
            with archive.open(entry, "w") as file:
                file.write(content)
    return path


def tarred(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, f"w:{path.suffix[1:].replace('tar', '')}") as archive:
        for name, content in files.items():
            item = tarfile.TarInfo(name)
            item.size = len(content)
            archive.addfile(item, io.BytesIO(content))
    return path


KINDS: dict[str, Callable[[Path, dict[str, bytes]], Path]] = {
    "a.zip": zipped,
    "a.tar": tarred,
    "a.tar.gz": tarred,
    "a.tar.xz": tarred,
}


def everything(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


@pytest.mark.parametrize("name", KINDS)
def test_archives_are_unpacked(tmp_path: Path, name: str) -> None:
    archive = KINDS[name](tmp_path / name, CONTENT)
    out = tmp_path / "new" / "out"
    assert unpack(archive, out, progress=False) == 3
    assert everything(out) == CONTENT
    # another archive of the set comes into the same folder; the same again changes nothing
    more = KINDS[name](tmp_path / f"more{name}", {"set/lidar/a.png": b"third"})
    assert unpack(more, out, progress=False) == 1
    assert unpack(archive, out, progress=False) == 3
    assert everything(out) == CONTENT | {"set/lidar/a.png": b"third"}
    assert [p.name for p in out.iterdir()] == ["set"]


@pytest.mark.fault("F33")
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    "bad", ["../outside.txt", "set/../../outside.txt", "/outside.txt", "C:/a.txt", "a\\..\\b"]
)
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str, bad: str) -> None:
    archive = KINDS[name](tmp_path / name, {**CONTENT, bad: b"evil"})
    before = everything(tmp_path)
    with pytest.raises(DataError, match=r"would be written outside.*nothing was unpacked") as info:
        unpack(archive, tmp_path / "out", progress=False)
    assert str(archive) in str(info.value)
    assert repr(bad) in str(info.value)
    assert everything(tmp_path) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.fault("F33")
@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_in_tar_are_refused(tmp_path: Path, kind: bytes) -> None:
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as file:
        item = tarfile.TarInfo("set/link")
        item.type, item.linkname = kind, "/etc/passwd"
        file.addfile(item)
    with pytest.raises(DataError, match="'set/link' is a link or device"):
        unpack(archive, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
@pytest.mark.parametrize(
    ("strange", "reason"),
    [
        ("", "a file has the name '', which no file can have"),
        (".", "a file has the name '.', which no file can have"),
        ("set/img/b.png/c", "'set/img/b.png' is a file, and the folder of 'set/img/b.png/c'"),
    ],
    ids=["empty", "dot", "below a file"],
)
def test_names_that_no_file_can_have_are_refused(
    tmp_path: Path, name: str, strange: str, reason: str
) -> None:
    archive = KINDS[name](tmp_path / name, {**CONTENT, strange: b"x"})
    with pytest.raises(DataError, match=reason) as caught:
        unpack(archive, tmp_path / "out", progress=False)
    assert f"{archive}: " in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.fault("F33")
def test_links_in_zip_are_refused(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as file:
        entry = zipfile.ZipInfo("set/link")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(entry, "/etc/passwd")
    with pytest.raises(DataError, match="'set/link' is a link or device"):
        unpack(archive, tmp_path / "out", progress=False)


@pytest.mark.fault("F33")
@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_bombs_are_refused(tmp_path: Path, name: str) -> None:
    archive = KINDS[name](tmp_path / name, {"zeros": bytes(65 << 20)})
    packed = archive.stat().st_size
    with pytest.raises(DataError, match=rf"its {packed} bytes unpack to {65 << 20}"):
        unpack(archive, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_a_file_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as file:
        for content in (b"1", b"2"):
            item = tarfile.TarInfo("./a")
            item.size = 1
            file.addfile(item, io.BytesIO(content))
    with pytest.raises(DataError, match=r"'\./a' occurs twice"):
        unpack(archive, tmp_path / "out", progress=False)


def test_a_full_disk_is_seen_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = zipped(tmp_path / "a.zip", CONTENT)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda path: usage(9, 9, 100))
    with pytest.raises(DataError, match="unpacks to 256 bytes, but only 100 are free"):
        unpack(archive, tmp_path / "deep" / "out", progress=False)
    assert not (tmp_path / "deep").exists()


def test_files_in_the_way_stay(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", CONTENT)
    mine = tmp_path / "out/set/img/b.png"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(DataError, match="another content; nothing was unpacked") as caught:
        unpack(archive, tmp_path / "out", progress=False)
    assert str(mine) in str(caught.value)
    assert everything(tmp_path / "out") == {"set/img/b.png": b"mine"}


def test_files_and_links_in_the_way_of_folders_stay(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "set.zip", {"a.png": b"theirs", "img/b.png": b"theirs"})
    out = tmp_path / "out"
    out.mkdir()
    (out / "img").write_bytes(b"mine")
    with pytest.raises(DataError, match="img is there and is no folder; nothing was unpacked"):
        unpack(archive, out, progress=False)
    assert everything(out) == {"img": b"mine"}
    (out / "img").unlink()
    (out / "a.png").symlink_to(tmp_path / "on a disk that is not mounted")
    with pytest.raises(DataError, match=r"a\.png is there with another content"):
        unpack(archive, out, progress=False)
    assert (out / "a.png").is_symlink()
    assert [p.name for p in out.iterdir()] == ["a.png"]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("keep", [0.3, 0.7])
def test_damaged_archives_leave_nothing(tmp_path: Path, name: str, keep: float) -> None:
    noise = {f"set/{i}.bin": os.urandom(5000) for i in range(9)}
    archive = KINDS[name](tmp_path / name, noise)
    archive.write_bytes(archive.read_bytes()[: int(archive.stat().st_size * keep)])
    with pytest.raises(DataError, match=r"is damaged or no archive.*fetch it again"):
        unpack(archive, tmp_path / "out", progress=False)
    assert everything(tmp_path) == {name: archive.read_bytes()}


def test_damage_inside_a_file_is_found(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"set/a.bin": os.urandom(5000)})
    content = bytearray(archive.read_bytes())
    content[2500] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(DataError, match="is damaged"):
        unpack(archive, tmp_path / "out", progress=False)
    assert everything(tmp_path / "out") == {}


def test_other_content_is_no_archive(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    archive.write_text("<html>quota exceeded</html>")
    with pytest.raises(DataError, match="is damaged or no archive"):
        unpack(archive, tmp_path / "out", progress=False)
    with pytest.raises(FileNotFoundError):
        unpack(tmp_path / "none.zip", tmp_path / "out", progress=False)


@pytest.mark.fault("F33")
@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_name_of_gigabytes_is_refused_before_it_is_read(tmp_path: Path, kind: bytes) -> None:
    """Archives pack it to nothing, and tarfile would hold all of it in memory."""
    header = tarfile.TarInfo("long")
    header.type, header.size = kind, 1 << 40
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20)))
    with pytest.raises(DataError, match=f"a header of {1 << 40} bytes"):
        unpack(archive, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


# --- fetch ---------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Address and folder of a local server; ``/short`` breaks off half-way."""
    served = tmp_path / "served"
    served.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(served))

        def do_GET(self) -> None:
            if self.path == "/elsewhere":
                self.send_response(302)
                self.send_header("Location", "http://192.0.2.1/set.zip")
                return self.end_headers()
            if self.path != "/short":
                return super().do_GET()
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(bytes(400))

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", served
        running.shutdown()


BODY = b"what the authors published" * 1000
HASH = hashlib.sha256(BODY).hexdigest()


def test_a_file_is_fetched_once(
    server: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address, served = server
    (served / "set.zip").write_bytes(BODY)
    out = tmp_path / "new" / "set.zip"
    command = ["fetch", "--url", f"{address}/set.zip", "--sha256", HASH.upper(), "--out", str(out)]
    assert data.main(command) == 0
    assert out.read_bytes() == BODY
    assert f"{out}: SHA-256 is right" in capsys.readouterr().out
    (served / "set.zip").unlink()  # a file that is there is not fetched again
    assert data.main(command) == 0
    assert [p.name for p in out.parent.iterdir()] == ["set.zip"]


@pytest.mark.fault("F34")
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/other", rf"has SHA-256 [0-9a-f]{{64}}, not {HASH}.*it was removed"),
        ("/short", rf"has SHA-256 [0-9a-f]{{64}}, not {HASH}|cannot fetch"),
        ("/elsewhere", r"leads to 'http://192\.0\.2\.1/set\.zip', which does not start with https"),
        ("/missing", r"cannot fetch http.*/missing: File not found; nothing was kept"),
    ],
)
def test_other_content_is_removed(
    server: tuple[str, Path], tmp_path: Path, path: str, message: str
) -> None:
    address, served = server
    (served / "other").write_bytes(BODY[:-1] + b"!")
    with pytest.raises(DataError, match=message):
        fetch(address + path, tmp_path / "out" / "set.zip", HASH, progress=False)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_silent_address_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot fetch http://127\.0\.0\.1:9/x: .*refused"):
        fetch("http://127.0.0.1:9/x", tmp_path / "x", HASH, progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "sha256", "message"),
    [
        ("file:///etc/passwd", HASH, "starts with https://"),
        ("ftp://host/a", HASH, "starts with https://"),
        ("http://host/a", HASH, "starts with https://"),
        ("https://[host/a", HASH, "starts with https://"),
        ("https://host/a", "abc", "'abc' is no SHA-256.*64 hexadecimal"),
    ],
)
def test_addresses_and_hashes_are_checked(
    tmp_path: Path, url: str, sha256: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        fetch(url, tmp_path / "x", sha256, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_another_file_of_the_name_stays(tmp_path: Path) -> None:
    out = tmp_path / "set.zip"
    out.write_bytes(b"mine")
    with pytest.raises(DataError, match=r"set\.zip is there and has SHA-256.*remove it"):
        fetch("https://host/a", out, HASH, progress=False)
    assert out.read_bytes() == b"mine"
