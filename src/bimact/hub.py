"""Policies and datasets on the Hugging Face hub: names, downloads into its cache, uploads."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from bimact.errors import UserError, library_errors

POLICY, DATASET = "model", "dataset"  # the hub's types of repositories
HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@([\w./-]+))?")

_POLICY_FILES = (".pth", ".pt", ".ckpt", ".safetensors", ".json", ".yaml", ".yml")  # no policy's name ends so
_WORDS = {POLICY: "policy", DATASET: "dataset"}
_NOT_FOR_ACTING = ("*.mp4", "*.gif", "*.state", "training_state/*", "runs/*", "logs/*")  # of a policy's files
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SECONDS_TO_ANSWER = 10.0
_TEXT = {".json", ".jsonl", ".yaml", ".yml", ".md", ".txt", ".csv", ".toml", ".xml", ".svg", ".html"}
_SECRETS = ("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "BIMACT_API_KEY", "AWS_SECRET_ACCESS_KEY")


# Downloads -----------------------------------------------------------------------------------------


def policy_name(path: str | Path) -> tuple[str, str | None] | None:
    """The name and the revision of a policy on the hub, if a path is one: `user/name`, `user/name@revision`, or with
    `hf://` before it. Whatever exists on this machine, or lies in a folder that does, is a local path."""
    text = os.fspath(path)
    if text.startswith("hf://"):
        found = HUB_NAME.fullmatch(text.removeprefix("hf://"))
        if found is None:
            raise UserError(f"{text} names no policy on the Hugging Face hub: give hf://USER/NAME, or @REVISION behind")
        return found[1], found[2]
    found = HUB_NAME.fullmatch(text)
    if found is None or os.path.lexists(text) or Path(text).parent.is_dir() or found[1].lower().endswith(_POLICY_FILES):
        return None
    return found[1], found[2]


def policy_folder(path: str | Path) -> Path | None:
    """The local copy of a policy that is on the hub, downloaded where it is not here; None: `path` is a local one.

    Raises:
        UserError: if there is none, it may not be read, or the hub cannot be reached and no copy is here.
    """
    found = policy_name(path)
    return None if found is None else snapshot(POLICY, *found, "", os.fspath(path))


def snapshot(kind: str, name: str, revision: str | None, folder: str, path: str) -> Path:
    """A policy's or dataset's copy in huggingface_hub's cache, or a folder of it.

    Where the hub does not answer, and a complete copy is here, that one is used, which a line on standard output says.

    Args:
        kind: `POLICY` or `DATASET`.
        name: as "user/name".
        revision: a branch, tag or commit; None: the newest.
        folder: the part that is wanted; "": all.
        path: as the user has given it, for messages.

    Raises:
        UserError: if it is not there, may not be read, cannot be reached, or does not fit on the disk.
    """
    from huggingface_hub import constants, errors, snapshot_download

    word = _WORDS[kind]
    patterns = [f"{folder}/**", folder] if folder else None
    no_answer = None if revision is not None and _COMMIT.fullmatch(revision) else _why_no_answer(kind, name, revision)
    try:
        found = Path(
            snapshot_download(
                name,
                repo_type=kind,
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=list(_NOT_FOR_ACTING) if kind == POLICY else None,
            )
        )
    except errors.GatedRepoError:
        raise UserError(
            f"{path}: the {word} {name} is gated: accept its conditions at {page_of(kind, name)} and log in by "
            "`hf auth login`"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"there is neither a folder {Path(path).absolute()} nor a {word} {name} on the Hugging Face hub that you "
            "may read: correct the name, or log in by `hf auth login` if it is private"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{path}: the {word} {name} on the Hugging Face hub has no revision {revision!r}") from None
    except errors.LocalEntryNotFoundError:
        where = (
            f"there is no folder {Path(path).absolute()}, and the Hugging Face cache holds no complete copy of {name}"
        )
        if constants.HF_HUB_OFFLINE:
            raise UserError(f"{where}, which HF_HUB_OFFLINE forbids to download: unset it once") from None
        raise UserError(
            f"{where}, and the hub cannot be reached: connect to the internet, or give the folder of a copy"
        ) from None
    except library_errors() as error:
        raise UserError(
            f"cannot download {name} from the Hugging Face hub ({_in_words(error)}): run the same command again, it "
            "goes on from there"
        ) from None
    part = found / folder
    if not part.exists():
        raise UserError(f"the {word} {name} on the Hugging Face hub has no folder {folder!r}")
    if no_answer is not None:
        day = datetime.fromtimestamp(found.stat().st_mtime)
        print(
            f"Note: the Hugging Face hub does not answer for {name} ({no_answer}): the copy of {day:%Y-%m-%d} is used, "
            f"which may not be the newest ({found})",
            flush=True,
        )
    return part


def page_of(kind: str, name: str) -> str:
    """The address of a policy's or dataset's page."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{'datasets/' if kind == DATASET else ''}{name}"


def _why_no_answer(kind: str, name: str, revision: str | None) -> str | None:
    """Why the hub does not tell which is the newest version, so that an older copy may be taken.

    `snapshot_download` takes that copy without a word.
    """
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:  # the user knows
        return None
    revision, api = revision or constants.DEFAULT_REVISION, HfApi()
    try:
        if kind == POLICY:
            api.model_info(name, revision=revision, timeout=_SECONDS_TO_ANSWER, expand=["sha"])
        else:
            api.dataset_info(name, revision=revision, timeout=_SECONDS_TO_ANSWER, expand=["sha"])
    except library_errors() as error:
        return _in_words(error)
    return None


def _in_words(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


# Uploads -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Upload:
    """Files for a repository on the hub.

    Attributes:
        kind: `POLICY` or `DATASET`.
        name: of the repository, as "user/name".
        files: name in the repository → a file, or its content.
        own: patterns of the files that an earlier upload by bimact may have left there; those that are not among
            `files` are deleted.
        secrets: texts that must not be in any file, besides those that are never allowed: paths of this machine.
    """

    kind: str
    name: str
    files: Mapping[str, Path | bytes]
    own: tuple[str, ...] = ()
    secrets: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if HUB_NAME.fullmatch(self.name) is None or "@" in self.name:
            raise UserError(f"'{self.name}' is no name on the Hugging Face hub: give USER/NAME, such as alice/cups")

    @property
    def size(self) -> int:
        return sum(_size(content) for content in self.files.values())

    def lines(self) -> list[str]:
        """What will be uploaded, a line for each file; of a folder with many files one line."""
        folders: dict[str, list[str]] = {}
        for name in sorted(self.files):
            folders.setdefault(name.rpartition("/")[0], []).append(name)
        lines = []
        for folder, names in folders.items():
            if len(names) > 12:
                size = sum(_size(self.files[name]) for name in names)
                lines.append(f"  {folder or '.'}/ ({len(names)} files, {decimal(size)})")
            else:
                lines += [f"  {name} ({decimal(_size(self.files[name]))})" for name in names]
        return lines

    def refuse_secrets(self) -> None:
        """Check that no file holds a path of this machine or a token.

        Text is searched for the paths; all but video and images, up to 64 MB a file, for tokens.

        Raises:
            UserError: naming the file.
        """
        from huggingface_hub import get_token

        paths = {str(Path.home()), *self.secrets} - {"/", ""}
        tokens = {os.environ.get(name) for name in _SECRETS} | {get_token()}
        told = {token for token in tokens if token and len(token) >= 8}
        for name, content in self.files.items():
            if Path(name).suffix in (".mp4", ".png", ".jpg", ".gif"):
                continue
            text = content if isinstance(content, bytes) else _beginning(content)
            is_text = Path(name).suffix.lower() in _TEXT
            for path in paths if is_text else ():
                if re.search(re.escape(path.encode()) + rb"(?![\w.-])", text):
                    raise UserError(f"{name} has a path of this machine, {path}: remove it there; nothing was uploaded")
            if any(token.encode() in text for token in told):
                raise UserError(f"{name} has a token of yours in it: remove it there; nothing was uploaded")

    def announce_and_send(
        self, notes: Sequence[str], card: str, *, public: bool, message: str, is_trial: bool
    ) -> str | None:
        """Print what will be uploaded, then upload it.

        Args:
            notes: lines on what is left out.
            card: name of the file that is printed if `is_trial`.
            public: see `send`.
            message: see `send`.
            is_trial: print the files and the card, and upload nothing.

        Returns:
            the address of its page; None if nothing was uploaded.

        Raises:
            UserError: see `refuse_secrets` and `send`.
        """
        self.refuse_secrets()
        count = len(self.files)
        print(f"{'Would upload' if is_trial else 'Uploading'} {count} files ({decimal(self.size)}) to {self.name}:")
        for line in (*self.lines(), *(f"Note: {note}" for note in notes)):
            print(line, flush=True)
        if is_trial:
            content = self.files[card]
            print(f"\n{card}:\n\n{content.decode() if isinstance(content, bytes) else content.read_text()}")
            return None
        return self.send(public=public, message=message)

    def send(self, *, public: bool = False, message: str) -> str:
        """Create the repository where there is none, and upload the files in one commit.

        Args:
            public: whether a new repository can be read by everybody; one that exists stays as it is.
            message: of the commit.

        Returns:
            the address of its page.

        Raises:
            UserError: without a login, if the name belongs to somebody else, or the hub cannot be reached.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, errors

        if constants.HF_HUB_OFFLINE:
            raise UserError("HF_HUB_OFFLINE forbids to upload: unset it")
        self.refuse_secrets()
        api, word = HfApi(library_name="bimact"), _WORDS[self.kind]
        try:
            info: Any = None
            try:
                info = api.repo_info(self.name, repo_type=self.kind, timeout=_SECONDS_TO_ANSWER)
            except errors.RepositoryNotFoundError:
                api.create_repo(self.name, repo_type=self.kind, private=not public)
                print(f"{self.name} is a new {'public' if public else 'private'} {word}", flush=True)
            there = [] if info is None else [entry.rfilename for entry in info.siblings or ()]
            old = [
                name
                for name in there
                if name not in self.files and any(fnmatchcase(name, pattern) for pattern in self.own)
            ]
            if info is not None:
                kept = "private" if info.private else "public"
                print(f"{self.name} exists and stays {kept}: it gets a new commit, its history keeps the old files")
            for name in old:
                print(f"  {name} of an earlier upload is deleted", flush=True)
            operations: list[Any] = [
                CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
                for name, content in sorted(self.files.items())
            ]
            operations += [CommitOperationDelete(name) for name in old]
            api.create_commit(self.name, operations, commit_message=message, repo_type=self.kind)
        except errors.HfHubHTTPError as error:
            status = getattr(error.response, "status_code", None)
            if status in (401, 403):
                raise UserError(
                    f"the Hugging Face hub refuses to write to {self.name} ({status}): log in by `hf auth login` with "
                    "a token that may write, and give a name under your own user or organisation"
                ) from None
            raise UserError(f"cannot upload to {self.name} ({_in_words(error)}): run the same command again") from None
        except library_errors() as error:
            raise UserError(
                f"cannot upload to {self.name} ({_in_words(error)}): connect to the internet, and run the same command "
                "again"
            ) from None
        return page_of(self.kind, self.name)


def without_paths(value: Any) -> Any:
    """A copy of JSON's or YAML's content with the last part alone of each absolute path."""
    if isinstance(value, Mapping):
        return {key: without_paths(entry) for key, entry in value.items()}
    if isinstance(value, str):
        return Path(value).name if Path(value).is_absolute() or value.startswith("~") else value
    if isinstance(value, Iterable):
        return [without_paths(entry) for entry in value]
    return value


def as_json(content: Any) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64 << 20)
