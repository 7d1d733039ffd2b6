"""Each package that the code imports is declared in pyproject.toml, with bounds that fit how it is used."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import bimact

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CLIENT = tomllib.loads((ROOT / "packages/bimact-client/pyproject.toml").read_text())["project"]
OWN = {"bimact", "bimact_client", "policy", "train"}
OPTIONAL = {
    "aiohttp",  # what fsspec reads https:// with, and raises
    "imagecodecs",  # taken where it is installed, for zarr arrays with its codecs
    "triton",  # PyTorch brings it where torch.compile needs it
}
# Modules that are no public interface of their packages: any release may change them.
INTERNAL = (
    "wandb.sdk",
    "open_clip.model",
    "open_clip.transformer",
    "open_clip.modified_resnet",
    "open_clip.timm_model",
)


def declared(*extras: str) -> dict[str, Requirement]:
    """Distribution → requirement, of the package and of some of its extras."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}


def imported(*folders: str) -> Iterator[tuple[Path, str]]:
    """Each file below some folders with a module that it imports."""
    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            if "peers" in path.parts:  # needs the peers' own environments
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    yield from ((path, alias.name) for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
                    yield path, node.module


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folders", "extras"),
    [
        (("src", "scripts", "policy", "train"), ("export", "serve", "sim", "sweep", "rerun")),
        (("tests", "benchmarks"), (*("export", "serve", "sim", "sweep", "rerun"), "dev")),
    ],
)
def test_imported_packages_are_declared(folders: tuple[str, ...], extras: tuple[str, ...]) -> None:
    own = {
        part
        for folder in (*folders, "scripts", "examples")
        for path in (ROOT / folder).rglob("*.py")
        for part in (path.stem, path.parent.name)
    }
    distributions, known = packages_distributions(), declared(*extras)
    undeclared = {
        f"{path.relative_to(ROOT)} imports {module}"
        for path, module in imported(*folders)
        if (top := module.partition(".")[0]) not in {*sys.stdlib_module_names, *OWN, *OPTIONAL, *own}
        and not {canonicalize_name(name) for name in distributions.get(top, [top])} & known.keys()
    }
    assert not undeclared


def test_the_client_imports_what_it_declares() -> None:
    top = {module.partition(".")[0] for _, module in imported("packages/bimact-client/src")}
    names = {canonicalize_name(Requirement(line).name) for line in CLIENT["dependencies"]}
    assert top - set(sys.stdlib_module_names) - {"bimact_client"} == names


@pytest.mark.parametrize("requirement", declared(*PROJECT["optional-dependencies"]).values(), ids=str)
def test_requirements_have_a_lower_bound(requirement: Requirement) -> None:
    assert any(bound.operator == ">=" for bound in requirement.specifier)


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("wandb", "wandb.sdk.lib.service.service_connection:WandbApiFailedError"),
        ("wandb", "wandb.sdk.mailbox:HandleAbandonedError"),
        ("wandb", "wandb.sdk.mailbox:MailboxClosedError"),
        ("wandb", "wandb.sdk.mailbox.mailbox_handle:ServerResponseError"),
        ("open_clip_torch", "open_clip.transformer:VisionTransformer._embeds"),
        ("open_clip_torch", "open_clip.transformer:VisionTransformer._pool"),
        ("open_clip_torch", "open_clip.transformer:ResidualAttentionBlock"),
        ("open_clip_torch", "open_clip.timm_model:TimmModel"),
        ("accelerate", "accelerate.state:AcceleratorState._reset_state"),
    ],
)
def test_internals_of_packages_are_there(package: str, name: str) -> None:
    assert "<" in [bound.operator for bound in declared()[package.replace("_", "-")].specifier]
    module, _, path = name.partition(":")
    found: Any = import_module(module)
    for part in path.split("."):
        assert hasattr(found, part), f"{package} has no {name} any more: bimact uses it"
        found = getattr(found, part)


@pytest.mark.slow
def test_internals_of_packages_are_used_below_an_upper_bound() -> None:
    known = declared()
    for path, module in imported("src"):
        is_private = any(part.startswith("_") for part in module.split(".")[1:])
        if not (is_private or module.startswith(INTERNAL)) or module.startswith("bimact"):
            continue
        if (top := module.partition(".")[0]) in sys.stdlib_module_names:
            continue
        for name in packages_distributions()[top]:
            bounds = [bound.operator for bound in known[canonicalize_name(name)].specifier]
            assert "<" in bounds, f"{path} imports {module}: {name} needs an upper bound"


def test_what_the_security_page_and_the_citation_name_is_there() -> None:
    named = re.findall(r"`((?:tests|packages)/[^`]+)`", (ROOT / "SECURITY.md").read_text())
    assert len(named) > 8
    assert [path for path in named if not (ROOT / path).exists()] == []
    assert f"version: {bimact.__version__}\n" in (ROOT / "CITATION.cff").read_text()
