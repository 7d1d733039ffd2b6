"""Datasets that are elsewhere: copied once, whole, and renewed; a sentence for each thing that is in the way."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import huggingface_hub
import numpy as np
import pytest
from guide_files import write_dataset
from hub_server import COMMIT, HubServer, hub_environment

from bimact.data import mirror
from bimact.data.opening import open_dataset
from bimact.data.remote import local_copy
from bimact.errors import UserError

FILES = {"meta/info.json": b"{}", "data/a b.bin": bytes(range(256)) * 9, "data/empty": b"", "c.txt": b"c"}


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def write(folder: Path, files: dict[str, bytes] = FILES) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def copied(url: str, cache: Path) -> Path:
    copy = local_copy(url, cache)
    assert copy is not None and copy.is_relative_to(cache)
    return copy


def refusal(path: str, cache: Path | None) -> str:
    with pytest.raises(UserError) as caught:
        local_copy(path, cache)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    system.pipe({f"/bucket/cube/{name}": content for name, content in FILES.items()})
    yield system
    system.rm("/bucket", recursive=True)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


# Local paths ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/some/where", "data", "./a/b", "../b", "a/b/c", "demos/x.hdf5", "demos/x.zarr.zip", "", "a/"]
)
def test_paths_that_are_no_hub_names_are_local(path: str, cache: Path) -> None:
    assert local_copy(path, cache) is None


def test_a_local_path_comes_before_a_dataset_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lerobot" / "cube").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert local_copy("lerobot/cube", None) is None


# URLs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["", "/"])
def test_a_folder_in_memory_is_copied_whole(memory: Any, cache: Path, end: str) -> None:
    copy = copied(f"memory://bucket/cube{end}", cache)
    assert copy.name == "cube" and contents(copy) == FILES


def test_a_file_url_is_copied_and_trains(tmp_path: Path, cache: Path) -> None:
    dataset = write_dataset(tmp_path / "my cubes", [5, 4])
    episodes = open_dataset(f"file://{dataset}", cache_dir=cache)
    assert episodes.path.is_relative_to(cache) and episodes.path.name == "my cubes"
    np.testing.assert_array_equal(episodes.actions[:], np.load(dataset / "actions.npy"))


def test_a_single_file_is_a_dataset_too(memory: Any, cache: Path) -> None:
    memory.pipe("/bucket/x.zarr.zip", b"zip")
    copy = copied("memory://bucket/x.zarr.zip", cache)
    assert copy.name == "x.zarr.zip" and copy.read_bytes() == b"zip"


def test_only_what_has_changed_is_fetched_again(memory: Any, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = "memory://bucket/cube"
    copy = copied(url, cache)
    assert "downloading 4 of 4 files (2.3 kB) of memory://bucket/cube to" in capsys.readouterr().out
    before = {name: (copy / name).stat().st_ino for name in FILES}
    assert copied(url, cache) == copy
    assert "downloading" not in capsys.readouterr().out
    memory.pipe("/bucket/cube/meta/info.json", b"[]")
    memory.rm("/bucket/cube/c.txt")
    memory.pipe("/bucket/cube/new", b"new")
    (copy / "ours").write_text("of a converted copy")
    copied(url, cache)
    assert "downloading 2 of 4 files" in capsys.readouterr().out
    expected = {name: content for name, content in FILES.items() if name != "c.txt"}
    assert contents(copy) == {**expected, "meta/info.json": b"[]", "new": b"new", "ours": b"of a converted copy"}
    assert before["data/a b.bin"] == (copy / "data" / "a b.bin").stat().st_ino


def test_a_file_that_was_damaged_here_is_fetched_again(memory: Any, cache: Path) -> None:
    copy = copied("memory://bucket/cube", cache)
    (copy / "data" / "a b.bin").write_bytes(b"short")
    (copy / "c.txt").unlink()
    assert contents(copied("memory://bucket/cube", cache)) == FILES


def test_a_download_that_was_interrupted_goes_on(memory: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "_AT_ONCE", 1)
    whole = type(memory).get_file

    def breaks(system: Any, rpath: str, lpath: str, **options: Any) -> None:
        whole(system, rpath, lpath, **options)
        if rpath.endswith("meta/info.json"):
            Path(lpath).write_bytes(b"")
            raise ConnectionResetError("the line is dead")

    monkeypatch.setattr(type(memory), "get_file", breaks)
    sentence = refusal("memory://bucket/cube", cache)
    assert "cannot read memory://bucket/cube/meta/info.json (ConnectionResetError: the line is dead)" in sentence
    (place,) = (cache / "remote").iterdir()
    here = contents(place / "cube")
    assert 0 < len(here) < 4 and all(FILES[name] == content for name, content in here.items())
    journal = place / ".fetched.jsonl"
    journal.write_text(journal.read_text() + '["half a li')
    fetched = []
    monkeypatch.setattr(
        type(memory),
        "get_file",
        lambda system, rpath, *args, **more: (fetched.append(rpath), whole(system, rpath, *args, **more)),
    )
    assert contents(copied("memory://bucket/cube", cache)) == FILES
    assert len(fetched) == 4 - len(here)
    assert contents(copied("memory://bucket/cube", cache)) == FILES and len(fetched) == 4 - len(here)


@pytest.mark.parametrize("fault", ["shorter", "longer"])
def test_files_of_another_size_than_was_told_are_refused(
    memory: Any, cache: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    whole = type(memory).find

    def lies(system: Any, *args: Any, **options: Any) -> dict[str, Any]:
        found = whole(system, *args, **options)
        change = 1 if fault == "shorter" else -1
        return {
            name: {**info, "size": info["size"] + change} if name.endswith("bin") else info
            for name, info in found.items()
        }

    monkeypatch.setattr(type(memory), "find", lies)
    sentence = refusal("memory://bucket/cube", cache)
    assert (
        "a b.bin was cut off at 2304 of 2305 bytes" in sentence
        or "a b.bin is longer than the announced 2303 bytes" in sentence
    )
    assert not any("a b.bin" in name for name in contents(cache))


def test_what_does_not_fit_on_the_disk_is_not_begun(memory: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(cache.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2000))
    sentence = refusal("memory://bucket/cube", cache)
    assert "memory://bucket/cube needs 2.3 kB and" in sentence and "has 2.0 kB free" in sentence
    assert set(contents(cache)) == {f"remote/{next((cache / 'remote').iterdir()).name}/.lock"}


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "a//b", "./a", "a\\..\\b", "\0"])
def test_names_that_lead_out_of_the_copy_are_refused(
    memory: Any, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = f"/bucket/cube/{name}"
    listing = {path: {"name": path, "size": 1, "type": "file"}}
    monkeypatch.setattr(type(memory), "find", lambda *_, **__: listing)
    assert "which is outside of the dataset" in refusal("memory://bucket/cube", cache)
    assert not contents(tmp_path)


def test_links_in_a_folder_of_files_are_refused(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    write(tmp_path / "d")
    (tmp_path / "d" / "link").symlink_to(tmp_path / "secret")
    assert "link is a link: put the file itself there" in refusal(f"file://{tmp_path / 'd'}", cache)


def test_nothing_at_a_url(memory: Any, cache: Path) -> None:
    assert refusal("memory://bucket/nothing", cache) == "there is nothing at memory://bucket/nothing"
    assert "there is nothing at file:///nowhere/at/all" in refusal("file:///nowhere/at/all", cache)


def test_protocols_that_nobody_knows_are_refused(cache: Path) -> None:
    assert "Protocol not known: nonsense" in refusal("nonsense://x/y", cache)


@pytest.mark.parametrize(
    ("url", "package"), [("s3://bucket/x", "s3fs"), ("gs://bucket/x", "gcsfs"), ("sftp://host/x", "paramiko")]
)
def test_a_missing_driver_names_its_package(url: str, package: str, cache: Path) -> None:
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    assert refusal(url, cache) == f"{url} needs the package {package}: pip install {package}"


def test_passwords_are_not_shown(cache: Path) -> None:
    assert refusal("nonsense://me:secret@host/x?token=secret", cache).count("secret") == 0


def test_a_cache_that_cannot_be_written_is_told(memory: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot write the copy of memory://bucket/cube to" in refusal("memory://bucket/cube", tmp_path / "file")


def test_the_copy_goes_to_the_users_cache_unless_told(
    memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "users"))
    copy = local_copy("memory://bucket/cube", None)
    assert copy is not None and copy.is_relative_to(tmp_path / "users" / "bimact" / "remote")


def test_two_processes_make_one_copy(tmp_path: Path, cache: Path) -> None:
    source = write(tmp_path / "d", {f"{number:02d}": bytes([number]) * 20_000 for number in range(60)})
    code = "import sys; from pathlib import Path; from bimact.data.remote import local_copy\n"
    code += "print(local_copy(sys.argv[1], Path(sys.argv[2])))"
    command = [sys.executable, "-c", code, f"file://{source}", str(cache)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert outputs[0].splitlines()[-1] == outputs[1].splitlines()[-1]
    assert sum("downloading 60 of 60 files" in output for output in outputs) == 1
    assert contents(Path(outputs[0].splitlines()[-1])) == contents(source)


# Web servers ---------------------------------------------------------------------------------------


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A real web server that lists the folder `tmp_path / "web"`."""
    pytest.importorskip("aiohttp")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    (tmp_path / "web").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "web")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("end", ["", "/"])
def test_a_folder_that_a_web_server_lists_is_copied(tmp_path: Path, web: str, cache: Path, end: str) -> None:
    write(tmp_path / "web" / "my cube" / "x.zarr")
    copy = copied(f"{web}/my%20cube/x.zarr{end}", cache)
    assert copy.name == "x.zarr" and contents(copy) == FILES


def test_files_on_a_web_server_are_renewed_when_they_change(tmp_path: Path, web: str, cache: Path) -> None:
    source = write(tmp_path / "web" / "cube")
    copy = copied(f"{web}/cube", cache)
    before = (copy / "data" / "a b.bin").stat().st_ino
    (source / "c.txt").write_bytes(b"d")
    os.utime(source / "c.txt", (1, 1))
    assert contents(copied(f"{web}/cube", cache)) == {**FILES, "c.txt": b"d"}
    assert (copy / "data" / "a b.bin").stat().st_ino == before


def test_a_single_file_on_a_web_server(tmp_path: Path, web: str, cache: Path) -> None:
    write(tmp_path / "web", {"x.hdf5": b"hdf5" * 1000})
    copy = copied(f"{web}/x.hdf5", cache)
    assert copy.name == "x.hdf5" and copy.read_bytes() == b"hdf5" * 1000


def test_pages_that_sort_and_go_up_are_no_files(tmp_path: Path, web: str, cache: Path) -> None:
    links = ("?C=N;O=D", "../", "./", "a.bin", "#top", "/elsewhere/b.bin", "https://example.com/c.bin")
    page = "".join(f'<a href="{link}">x</a>' for link in links)
    write(tmp_path / "web" / "cube", {"index.html": page.encode(), "a.bin": b"a"})
    assert contents(copied(f"{web}/cube/", cache)) == {"a.bin": b"a"}


@pytest.mark.parametrize("link", ["..%2f..%2fevil", "a/%2e%2e/%2e%2e/evil", "a%5c..%5cevil", "%00"])
def test_links_that_lead_out_of_the_copy_are_refused(tmp_path: Path, web: str, cache: Path, link: str) -> None:
    write(tmp_path / "web" / "cube", {"index.html": f'<a href="{link}">x</a>'.encode()})
    assert "which is outside of the dataset" in refusal(f"{web}/cube/", cache)


def test_pages_that_go_on_for_ever_end(tmp_path: Path, web: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "_MOST_FOLDERS", 20)
    links = "".join(f'<a href="{number}/">x</a>' for number in range(30))
    write(tmp_path / "web" / "cube", {"index.html": links.encode()})
    assert "lists too many files" in refusal(f"{web}/cube/", cache)


def test_web_servers_that_refuse(cache: Path) -> None:
    pytest.importorskip("aiohttp")

    class Refuses(SimpleHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(403)

        do_GET = do_HEAD

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refuses)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sentence = refusal(f"http://127.0.0.1:{server.server_port}/x.hdf5", cache)
    server.shutdown()
    server.server_close()
    assert "ClientResponseError: 403" in sentence and "check the credentials of its driver" in sentence


def test_web_servers_that_are_not_there(web: str, cache: Path) -> None:
    assert refusal(f"{web}/nothing", cache) == f"there is nothing at {web}/nothing"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}/cube"
        assert f"cannot read {closed} (ClientConnectorError" in refusal(closed, cache)


# The Hugging Face hub ------------------------------------------------------------------------------


HUB_FILES = {"README.md": b"# cube", "data/a.bin": bytes(range(256)), "data/b.bin": b"b", "other/c.bin": b"c"}


@pytest.fixture
def hub() -> Iterator[HubServer]:
    server = HubServer(HUB_FILES)
    yield server
    server.close()


def on_hub(home: Path, endpoint: str, *paths: str, said: list[str] | None = None, **environment: str) -> list[str]:
    """What `local_copy` makes of paths in a process that takes a server for the hub: folders, or sentences.

    Args:
        said: takes the lines that are printed.
    """
    code = (
        "import sys, json\nfrom bimact.data.remote import local_copy\nfrom bimact.errors import UserError\nfound = []\n"
        "for path in sys.argv[1:]:\n"
        "    try: found.append(str(local_copy(path, None)))\n"
        "    except UserError as error: found.append(str(error))\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *paths],
        env=hub_environment(home, endpoint, **environment),
        cwd=home.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    if said is not None:
        said += lines
    sentences: list[str] = json.loads(last)
    assert not any("\n" in sentence for sentence in sentences)
    return sentences


@pytest.mark.slow
def test_a_dataset_of_the_hub_is_downloaded_once_and_then_works_offline(tmp_path: Path, hub: HubServer) -> None:
    home = tmp_path / "hf"
    name = "someone/cube"
    paths = (name, f"{name}@v1", f"hf://datasets/{name}", f"hf://datasets/{name}@{COMMIT}/data")
    found = on_hub(home, hub.url, *paths)
    snapshot = home / "hub" / "datasets--someone--cube" / "snapshots" / COMMIT
    assert [Path(path) for path in found] == [snapshot, snapshot, snapshot, snapshot / "data"]
    assert contents(snapshot) == HUB_FILES
    downloads = [request for request in hub.requests if request.startswith("GET /datasets/")]
    assert len(downloads) == len(HUB_FILES)
    seen = len(hub.requests)
    assert on_hub(home, hub.url, name, HF_HUB_OFFLINE="1") == [str(snapshot)]
    assert len(hub.requests) == seen
    hub.close()
    assert on_hub(home, hub.url, name) == [str(snapshot)]


@pytest.mark.slow
def test_a_copy_that_may_not_be_the_newest_is_told(tmp_path: Path, hub: HubServer) -> None:
    home, name = tmp_path / "hf", "someone/cube"
    told: list[str] = []
    on_hub(home, hub.url, name, said=told)
    on_hub(home, hub.url, name, said=told, HF_HUB_OFFLINE="1")
    assert not told
    hub.close()
    on_hub(home, hub.url, f"{name}@{COMMIT}", said=told)
    assert not told
    on_hub(home, hub.url, name, said=told)
    (line,) = told
    beginning = "Note: the Hugging Face hub does not answer for someone/cube ("
    assert line.startswith((beginning + "ConnectError", beginning + "ConnectionError"))  # the latter before 1.0
    assert "is used, which may not be the newest" in line and COMMIT in line


def test_a_folder_of_a_dataset_of_the_hub_is_downloaded_alone(tmp_path: Path, hub: HubServer) -> None:
    (found,) = on_hub(tmp_path / "hf", hub.url, "hf://datasets/someone/cube/data/")
    assert Path(found).name == "data" and set(contents(Path(found).parent)) == {"data/a.bin", "data/b.bin"}


def test_what_is_not_on_the_hub_is_told(tmp_path: Path, hub: HubServer) -> None:
    missing, gated, revision, folder, invalid = on_hub(
        tmp_path / "hf",
        hub.url,
        "someone/nothing",
        "someone/gated",
        "someone/cube@v9",
        "hf://datasets/someone/cube/nowhere",
        "some--one/cube",
    )
    assert missing.startswith(
        f"there is neither a folder {tmp_path / 'someone' / 'nothing'} nor a dataset someone/nothing"
    )
    assert "hf auth login" in missing
    assert f"is gated: accept its conditions at {hub.url}/datasets/someone/gated" in gated
    assert revision == "someone/cube@v9: the dataset someone/cube on the Hugging Face hub has no revision 'v9'"
    assert folder == "the dataset someone/cube on the Hugging Face hub has no folder 'nowhere'"
    assert "cannot download some--one/cube from the Hugging Face hub (HFValidationError" in invalid


def test_offline_and_unreachable_are_told_apart(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
        (unreachable,) = on_hub(tmp_path / "hf", closed, "someone/cube")
        (offline,) = on_hub(tmp_path / "hf", closed, "someone/cube", HF_HUB_OFFLINE="1")
    beginning = (
        f"there is no folder {tmp_path / 'someone' / 'cube'}, and the Hugging Face cache holds no complete copy of"
    )
    assert unreachable.startswith(beginning) and "the hub cannot be reached: connect to the internet" in unreachable
    assert offline.startswith(beginning) and offline.endswith("which HF_HUB_OFFLINE forbids to download: unset it once")


@pytest.mark.skipif(huggingface_hub.__version__.startswith(("0.", "1.")), reason="it does not know what is missing")
def test_a_copy_that_was_interrupted_is_not_taken_for_whole(tmp_path: Path, hub: HubServer) -> None:
    home = tmp_path / "hf"
    (snapshot,) = on_hub(home, hub.url, "someone/cube")
    (Path(snapshot) / "data" / "a.bin").unlink()
    (sentence,) = on_hub(home, hub.url, "someone/cube", HF_HUB_OFFLINE="1")
    assert "holds no complete copy of someone/cube" in sentence
