"""Where the names in a dataset may lead."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bimact.errors import UserError
from bimact.files import real_file


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "d" / "data").mkdir(parents=True)
    (tmp_path / "d" / "data" / "x").write_text("x")
    return tmp_path / "d"


def test_files_are_found_through_links_inside(root: Path) -> None:
    (root / "link").symlink_to("data")
    assert real_file(root, "data/x") == real_file(root, "link/x") == (root / "data" / "x").resolve()


@pytest.mark.parametrize("name", ["nothing", "data/x/y", "nothing/x"])
def test_files_that_are_not_there(root: Path, name: str) -> None:
    assert real_file(root, name) is None


@pytest.mark.parametrize("name", ["../secret", "data/../../secret", "/etc/passwd", "link", "folder/secret"])
def test_names_and_links_that_leave_the_dataset_are_refused(root: Path, name: str) -> None:
    (root / "link").symlink_to("../secret")
    (root / "folder").symlink_to("..")
    with pytest.raises(UserError, match="is a link that leaves the dataset"):
        real_file(root, name)


def test_folders_pipes_and_loops_are_no_files(root: Path) -> None:
    os.mkfifo(root / "pipe")
    (root / "loop").symlink_to("loop")
    for name, sentence in (
        ("data", "is no file"),
        ("pipe", "is no file"),
        ("loop", "cannot read"),
        ("a\0b", "cannot read"),
    ):
        with pytest.raises(UserError, match=sentence):
            real_file(root, name)


def test_a_snapshot_leads_to_the_blobs_of_its_own_dataset_alone(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    snapshot = hub / "datasets--a--b" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for dataset in ("datasets--a--b", "datasets--c--d"):
        (hub / dataset / "blobs").mkdir(parents=True)
        (hub / dataset / "blobs" / "9").write_text(dataset)
        (snapshot / dataset).symlink_to(f"../../../{dataset}/blobs/9")
    assert real_file(snapshot, "datasets--a--b") == (hub / "datasets--a--b" / "blobs" / "9").resolve()
    with pytest.raises(UserError, match="is a link that leaves the dataset"):
        real_file(snapshot, "datasets--c--d")
