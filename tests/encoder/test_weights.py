"""Files of weights and downloads: what is read, what is refused, and what is said of it."""

from __future__ import annotations

import argparse
import os
import pickle
import socket
import time
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from bimact.config import EncoderConfig
from bimact.encoder.base import build_encoder
from bimact.encoder.weights import WeightsSource, choose_source, download, read_state_dict, strip_prefix
from bimact.errors import UserError

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}


def same(state: dict[str, torch.Tensor]) -> bool:
    return state.keys() == STATE.keys() and all(torch.equal(state[key], STATE[key]) for key in STATE)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict", "model_state"])
def test_wrapped_state_dict(wrapper: str | None, tmp_path: Path) -> None:
    content: Any = {wrapper: STATE, "epoch": 3, "args": argparse.Namespace(lr=1.0)} if wrapper else STATE
    torch.save(content, tmp_path / "weights.pt")
    assert same(read_state_dict(tmp_path / "weights.pt"))
    torch.save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert same(read_state_dict(tmp_path / "old.pt"))


def test_safetensors(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "weights.safetensors")
    assert same(read_state_dict(tmp_path / "weights.safetensors"))


class _Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("encoder", ["pri3d", "clip_vit", "timm"])
def test_file_that_wants_to_run_code(form: str, encoder: str, tmp_path: Path) -> None:
    trap, file = tmp_path / "trap", tmp_path / "weights.pth"
    content = {"state_dict": STATE, "surprise": _Hostile(trap)}
    if form == "pickle":
        file.write_bytes(pickle.dumps(content["surprise"], protocol=2))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    names = {"clip_vit": "RN50", "timm": "test_vit", "pri3d": "resnet18"}
    if encoder != "clip_vit" or form == "zip":  # RN50 takes a while to make
        with pytest.raises(UserError, match=r"holds more than weights \(posix\.system\)"):
            build_encoder(EncoderConfig(name=encoder, model_name=names[encoder], pretrained=str(file)))
    with pytest.raises(UserError, match=r"must not run code: save the state dict alone"):
        read_state_dict(file)
    assert not trap.exists()
    pickle.loads(pickle.dumps(_Hostile(trap)))
    assert trap.exists()  # so the trap works


@pytest.mark.filterwarnings("ignore")
def test_torchscript_archive(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "ViT-B-32.pt")
    with pytest.raises(UserError, match=r"ViT-B-32\.pt is a TorchScript archive, which is a program: if you trust it"):
        read_state_dict(tmp_path / "ViT-B-32.pt")


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"weights file not found: .*none\.pt"):
        read_state_dict(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "text.safetensors").write_text("hello")
    torch.save({"epoch": 3}, tmp_path / "no_tensors.pt")
    torch.save([torch.zeros(3)], tmp_path / "list.pt")
    loop: dict[str, Any] = {}
    loop["model"] = loop
    torch.save(loop, tmp_path / "loop.pt")
    for name, words in {
        "text.pt": "is not a file of weights that torch can read",
        "empty.pt": "is empty",
        "text.safetensors": "is not a readable safetensors file",
        "no_tensors.pt": "holds no state dict",
        "list.pt": "holds no state dict",
        "loop.pt": "holds no state dict",
    }.items():
        with pytest.raises(UserError, match=words):
            read_state_dict(tmp_path / name)


@pytest.mark.parametrize("form", ["zip.pt", "legacy.pt", "weights.safetensors"])
def test_damaged_files_end_in_a_sentence(form: str, tmp_path: Path) -> None:
    file = tmp_path / form
    if form.endswith(".safetensors"):
        save_file(STATE, file)
    else:
        torch.save({"state_dict": STATE}, file, _use_new_zipfile_serialization=form == "zip.pt")
    whole = file.read_bytes()

    @settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), max_size=8), st.data())
    def check(changes: list[tuple[int, int]], data: st.DataObject) -> None:
        content = bytearray(whole)
        for place, value in changes:
            content[place] = value
        length = data.draw(st.one_of(st.just(len(whole)), st.integers(0, len(whole))))
        file.write_bytes(content[:length])
        try:
            state = read_state_dict(file)
        except UserError:
            return
        assert all(isinstance(value, torch.Tensor) for value in state.values())

    check()


def test_prefixes() -> None:
    for prefix in ("", "module.", "backbone.encoder.", "a."):
        state = {prefix + name: value for name, value in STATE.items()} | {"head.weight": torch.zeros(1)}
        assert same({name: v for name, v in strip_prefix(state, STATE).items() if name in STATE})
    foreign = {"x.weight": torch.zeros(1)}
    assert strip_prefix(foreign, STATE) == foreign
    assert strip_prefix({}, STATE) == {}


def test_what_pretrained_means(tmp_path: Path) -> None:
    def choose(pretrained: Any, usual: str | None = "openai", **more: Any) -> WeightsSource:
        return choose_source(EncoderConfig(pretrained=pretrained, **more), "M", ["laion_2b", "openai"], usual)

    file = tmp_path / "weights.pt"
    assert choose(None) == choose(False) == WeightsSource()
    assert choose(True) == choose("openai") == choose("OpenAI") == WeightsSource(tag="openai")
    assert choose("laion-2b") == WeightsSource(tag="laion_2b")
    with pytest.raises(UserError, match=r"weights file not found: .*weights\.pt \(encoder\.pretrained\)"):
        choose(str(file))
    assert choose(str(file), weights_from_checkpoint=True) == WeightsSource(file=file)
    file.touch()
    assert choose(str(file)) == choose(file) == WeightsSource(file=file)
    with pytest.raises(UserError, match="M has no pretrained weights 'laoin'; did you mean laion_2b"):
        choose("laoin")
    with pytest.raises(UserError, match="M has no pretrained weights 'xyz'; there is laion_2b, openai"):
        choose("xyz")
    with pytest.raises(UserError, match=r"encoder\.pretrained is 3, it has to be a tag, a path, true or null"):
        choose(3)
    with pytest.raises(
        UserError, match="there are no pretrained weights for M: set encoder.pretrained to a local file"
    ):
        choose(True, usual=None)
    assert choose(True, usual=None, weights_from_checkpoint=True) == WeightsSource()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No name is resolved, no cache holds anything."""
    from huggingface_hub import constants

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("name", "model", "wanted"),
    [
        ("clip_vit", "RN50", "CLIP weights 'openai' of RN50"),
        ("timm", "test_vit", "timm's weights test_vit.r160_in1k"),
        ("pri3d", "resnet18", "torchvision's ImageNet weights of resnet18"),
    ],
)
def test_failed_download_is_one_sentence_and_soon(name: str, model: str, wanted: str, offline: None) -> None:
    from huggingface_hub import constants

    before = socket.getdefaulttimeout(), constants.HF_HUB_OFFLINE
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        build_encoder(EncoderConfig(name=name, model_name=model, pretrained=True))
    assert time.monotonic() - start < 15  # by itself the hub's library tries for 23 s and more
    sentence = str(caught.value)
    assert sentence.startswith(f"cannot get {wanted} (") and "\n" not in sentence
    assert "encoder.pretrained: /path/to/file" in sentence
    assert sentence.endswith("or encoder.pretrained: null for random weights")
    assert (socket.getdefaulttimeout(), constants.HF_HUB_OFFLINE) == before
    if name == "clip_vit":
        assert "with encoder.model_name: RN50-quickgelu (the activation of these weights)" in sentence


def _hub_error() -> Exception:
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__mro__[1]("the HTTP library's own error")


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError("no host"),
        urllib.error.HTTPError("http://x", 404, "Not Found", None, None),  # type: ignore[arg-type]
        TimeoutError("timed out"),
        ConnectionResetError("reset"),
        FileNotFoundError("not on the hub"),
        RuntimeError("invalid hash value"),
        _hub_error(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_download_raises(error: Exception) -> None:
    with pytest.raises(UserError, match=r"cannot get X \(.+\): give a local file"), download("X", hub=False):
        raise error


def test_a_programming_error_is_not_a_failed_download() -> None:
    with pytest.raises(KeyError), download("X", hub=False):
        raise KeyError("x")
