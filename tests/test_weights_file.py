"""Files of weights: sharded, renamed or a pointer; nothing in them runs, nothing outside their folder is read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_policies import beside_an_optimizer, write_pointer, write_shards
from omegaconf import OmegaConf
from safetensors.torch import save_file

from bimact.errors import UserError
from bimact.weights_file import read_content, size_of, state_dicts

TENSORS = {name: torch.full((2, 3), float(number)) for number, name in enumerate("abcde")}


def same(tensors: dict[str, torch.Tensor]) -> bool:
    return tensors.keys() == TENSORS.keys() and all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize(("stem", "ending"), [("model", "safetensors"), ("pytorch_model", "bin")])
def test_sharded_weights(tmp_path: Path, stem: str, ending: str) -> None:
    index = write_shards(tmp_path, TENSORS, stem, ending)
    assert same(read_content(index))
    parts = [path for path in tmp_path.iterdir() if path != index]
    assert len(parts) == 2 and size_of(index) == sum(path.stat().st_size for path in parts)
    with pytest.raises(UserError, match=rf"is one of 2 files that belong together: give their index, {index.name}"):
        read_content(parts[0])


def test_shards_in_the_cache_of_hugging_face(tmp_path: Path) -> None:
    """All files of a snapshot are links to the blobs beside it."""
    snapshot, blobs = tmp_path / "models--me--act" / "snapshots" / "1a2b", tmp_path / "models--me--act" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    index = write_shards(snapshot, TENSORS)
    for number, path in enumerate(list(snapshot.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(f"../../blobs/{number}")
    assert same(read_content(index))


def change_map(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(index: Path) -> None:
        content = json.loads(index.read_text())
        change(content["weight_map"])
        index.write_text(json.dumps(content))

    return apply


def link_out(index: Path) -> None:
    shard = index.with_name("model-00001-of-00002.safetensors")
    outside = index.parent.parent / "outside.safetensors"
    shard.rename(outside)
    shard.symlink_to(outside)


INDEXES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "parent": (
        change_map(lambda m: m.update(a="../x.safetensors")),
        r"names '\.\./x\.safetensors', which is not a file of",
    ),
    "absolute": (
        change_map(lambda m: m.update(a="/etc/passwd")),
        "names '/etc/passwd', which is not a file of its folder",
    ),
    "below": (
        change_map(lambda m: m.update(a="sub/x.safetensors")),
        "which is not a file of its folder: do not trust it",
    ),
    "detour": (
        change_map(lambda m: m.update(a="x/../model-00001-of-00002.safetensors")),
        "which is not a file of its folder",
    ),
    "link": (link_out, r"names 'model-00001-of-00002\.safetensors', which is not a file of its folder"),
    "nothing": (change_map(lambda m: m.update(a="")), "names '', which is not a file of its folder"),
    "dots": (change_map(lambda m: m.update(a="..")), r"names '\.\.', which is not a file of its folder"),
    "zero": (change_map(lambda m: m.update(a="x\0")), r"names 'x\\x00', which is not a file of its folder"),
    "number": (change_map(lambda m: m.update(a=3)), "names '3', which is missing"),
    "long": (change_map(lambda m: m.update(a="x" * 300)), "names 'xxx.*, which is not a file of its folder"),
    "missing": (
        lambda index: index.with_name("model-00002-of-00002.safetensors").unlink(),
        r"names 'model-00002-of-00002\.safetensors', which is missing: copy it there too",
    ),
    "pointer": (
        lambda index: write_pointer(index.with_name("model-00002-of-00002.safetensors")),
        r"model-00002-of-00002\.safetensors is a git-lfs pointer",
    ),
    "tensor": (change_map(lambda m: m.update(zzz=m["a"])), "has no tensor 'zzz', which .* names"),
    "empty": (change_map(dict.clear), "is not an index of sharded weights"),
    "no map": (lambda index: index.write_text("{}"), "is not an index of sharded weights"),
    "list": (lambda index: index.write_text("[]"), "is not an index of sharded weights"),
    "deep": (lambda index: index.write_text("[" * 10**6), "is not an index of sharded weights"),
    "no text": (lambda index: index.write_bytes(b"\xff\xfe"), "is not an index of sharded weights"),
}


@pytest.mark.parametrize("name", INDEXES)
def test_faulty_indexes_are_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "policy").mkdir()
    index = write_shards(tmp_path / "policy", TENSORS)
    (tmp_path / "x.safetensors").write_bytes(index.with_name("model-00001-of-00002.safetensors").read_bytes())
    change, sentence = INDEXES[name]
    change(index)
    with pytest.raises(UserError, match=sentence) as caught:
        read_content(index)
    assert str(index.parent) in str(caught.value) and str(caught.value).isprintable()


def test_a_pointer_of_git_lfs_is_recognised(tmp_path: Path) -> None:
    for name in ("policy_best.ckpt", "model.safetensors", "weights.pth", "model.safetensors.index.json"):
        write_pointer(tmp_path / name)
        with pytest.raises(UserError, match=rf"{name} is a git-lfs pointer, .* run `git lfs pull` in its repository"):
            read_content(tmp_path / name)


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "policy_best.ckpt")
    torch.save(TENSORS, tmp_path / "model.safetensors")
    torch.save(TENSORS, tmp_path / "old.safetensors", _use_new_zipfile_serialization=False)
    for path in tmp_path.iterdir():
        assert same(read_content(path))


def test_what_lies_beside_weights_is_passed_over(tmp_path: Path) -> None:
    content = beside_an_optimizer("model", TENSORS)
    content |= {"config": OmegaConf.create({"lr": 1e-4, "layers": [1, 2], "name": None}), "seen": {"set"}}
    content["stats"] = {"mean": np.zeros(3, np.float32), "names": np.array(["a", "b"]), "count": np.int64(3)}
    for zipped in (True, False):
        torch.save(content, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
        found = state_dicts(read_content(tmp_path / "a.ckpt"))
        assert list(found) == [("model",)] and same(found["model",])


class _Hostile:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


@pytest.mark.parametrize("function", [os.system, eval, exec, getattr, Path.write_text, np.fromfile, np.load])
def test_functions_are_refused(tmp_path: Path, function: Callable[..., Any]) -> None:
    torch.save({"model": TENSORS, "x": _Hostile(function, "touch x")}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"a\.ckpt holds more than weights \(.+\), and a file .* must not run code"):
        read_content(tmp_path / "a.ckpt")


def test_a_whole_module_is_refused_with_advice(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"torch\.nn\.modules\.linear\.Linear\).* save the state dict alone"):
        read_content(tmp_path / "a.pth")


def test_a_dictionary_that_holds_itself(tmp_path: Path) -> None:
    loop: dict[str, Any] = {"model": TENSORS}
    loop["again"] = loop
    torch.save(loop, tmp_path / "a.pth")
    assert list(state_dicts(read_content(tmp_path / "a.pth"))) == [("model",)]
