"""Reads mutated files of every dataset format: the only outcomes are a dataset that is read, or one clear sentence.

    python tests/fuzz_readers.py --mutations 10000 --seed 0

Each mutated dataset is opened and read as a training does it: `open_source`, the usual selection, then state, action,
timestamps and images in a child process. A crash or a hang of a library is caught there and told by a sentence; it is
counted.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from guide_files import write_dataset
from hdf5_files import write_aloha, write_robomimic
from lerobot_files import VARIANTS, write_lerobot
from raw_files import write_raw
from zarr_files import write_replay, zipped

from bimact.data.opening import open_source
from bimact.data.selection import SelectedSource, Selection
from bimact.data.workers import run_apart
from bimact.errors import UserError
from bimact.progress import progress_bar

_PATIENCE = 60  # seconds for reading a dataset of a dozen small images
_MEMORY = 1 << 30  # bytes that reading such a dataset may take at most


def write_samples(folder: Path) -> dict[str, Path]:
    """A small dataset of each kind: name → its folder or file."""
    samples = {f"lerobot {name}": write_lerobot(folder / name, (3, 2), variant) for name, variant in VARIANTS.items()}
    samples["aloha raw"] = write_aloha(folder / "aloha", (3, 2))
    samples["aloha JPEG"] = write_aloha(folder / "aloha_jpeg", (3, 2), jpegs="rows")
    samples["robomimic"] = write_robomimic(folder / "robomimic.hdf5", (3, 2))
    samples["zarr"] = folder / "replay.zarr"
    write_replay(samples["zarr"], [3, 2])
    samples["zarr zip"] = zipped(samples["zarr"], folder / "replay.zarr.zip")
    samples["raw memory map"] = folder / "raw"
    write_raw(samples["raw memory map"], [3, 2])
    samples["guide structured"] = write_dataset(folder / "guide", [3, 2])
    samples["guide pickled"] = _pickled(samples["guide structured"], folder / "guide_pickled")
    return samples


def _pickled(dataset: Path, target: Path) -> Path:
    """The same dataset, its observations as dictionaries."""
    shutil.copytree(dataset, target)
    records = np.load(target / "observations.npy")
    steps = [{name: record[name] for name in records.dtype.names} for record in records]
    np.save(target / "observations.npy", np.array(steps, dtype=object), allow_pickle=True)
    return target


# Mutations -----------------------------------------------------------------------------------------


def _flip(content: bytearray, draw: random.Random) -> None:
    for _ in range(draw.choice([1, 1, 2, 8, 64])):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)


def _replace(content: bytearray, draw: random.Random) -> None:
    begin = draw.randrange(len(content))
    end = min(len(content), begin + draw.choice([1, 4, 16, 256]))
    content[begin:end] = draw.randbytes(end - begin)


def _absurd_number(content: bytearray, draw: random.Random) -> None:
    """A size, an offset or a count becomes an extreme one."""
    size = draw.choice([2, 4, 8])
    value = draw.choice([0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), 2 ** (8 * size - 1) - 1, 2 ** (5 * size)])
    begin = draw.randrange(max(1, len(content) - size))
    content[begin : begin + size] = value.to_bytes(size, draw.choice(["little", "big"]))


def _absurd_text(content: bytearray, draw: random.Random) -> None:
    """A number in a text becomes an absurd one; in binary files, any digits that there are."""
    places = [place for place, byte in enumerate(content) if 48 <= byte <= 57]
    if places:
        place = draw.choice(places)
        new = draw.choice([b"99999999999999999999", b"-1", b"1e308", b"null", b'"../../x"', b"NaN", b"[" * 2000, b"0"])
        content[place : place + 1] = new


def _cut(content: bytearray, draw: random.Random) -> None:
    del content[draw.randrange(len(content)) :]


def _cut_out(content: bytearray, draw: random.Random) -> None:
    begin = draw.randrange(len(content))
    del content[begin : begin + draw.choice([1, 8, 512])]


def _repeat(content: bytearray, draw: random.Random) -> None:
    begin = draw.randrange(len(content))
    content[begin:begin] = content[begin : begin + draw.choice([1, 8, 512])]


def _empty(content: bytearray, draw: random.Random) -> None:
    content.clear()


MUTATIONS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    *(_flip, _flip, _flip, _replace, _replace, _absurd_number, _absurd_number, _absurd_number),
    *(_absurd_text, _absurd_text, _cut, _cut, _cut_out, _repeat, _empty),
)


def mutate(sample: Path, target: Path, draw: random.Random) -> str:
    """Copy a dataset, one of its files mutated; most of the mutations hit a file's head, where its structure is.

    Returns:
        what was done.
    """
    if sample.is_file():
        shutil.copy(sample, target)
        chosen = target
    else:
        shutil.copytree(sample, target, copy_function=os.link)
        chosen = draw.choice(sorted(file for file in target.rglob("*") if file.is_file()))
    content = bytearray(chosen.read_bytes())
    chosen.unlink()  # the sample's own content has this name too
    mutation = draw.choice(MUTATIONS)
    head = draw.choice([128, 1024, len(content)])
    part, rest = content[:head], content[head:]
    if part:
        mutation(part, draw)
    chosen.write_bytes(part if mutation in (_cut, _empty) else part + rest)
    return f"{mutation.__name__.strip('_')} in {chosen.relative_to(target.parent)}"


# Reading -------------------------------------------------------------------------------------------


def read_everything(source: SelectedSource) -> tuple[str | None, int]:
    """In a child: read all that a training would use.

    Returns:
        the sentence of an error, and the bytes that it took at most.
    """
    import resource

    sentence = None
    try:
        for episode in range(min(20, len(source.episodes))):
            columns = source.read_columns(episode, ["state", "action"])
            assert {len(values) for values in columns.values()} <= {source.episodes[episode].length}
            source.read_timestamps(episode)
            for camera, size in source.cameras.items():
                for frame in source.read_frames(episode, camera, range(min(50, source.episodes[episode].length))):
                    assert frame.shape == (size.height, size.width, 3) and frame.dtype == np.uint8
    except UserError as error:
        sentence = str(error)
    return sentence, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def outcome(path: Path, cache: Path) -> str:
    """What comes of a dataset: "read", "refused", "crash", "hang", "memory", or whatever must not be."""
    try:
        source = Selection().applied_to(open_source(path, cache_dir=cache))
        source.refuse_damaged()
        source.require_camera()
        sentence, memory = run_apart(read_everything, source, what=str(path), timeout=_PATIENCE)
        if memory > _MEMORY:
            return f"FAULT: reading takes {memory / 1e9:.1f} GB"
    except UserError as error:
        sentence = str(error)
    except Exception as error:
        return f"FAULT: {type(error).__name__}: {error}"
    if sentence is None:
        return "read"
    if "\n" in sentence or len(sentence) > 1500:
        return f"FAULT: no clear sentence: {sentence[:200]!r}"
    told = {"crashes the library": "crash", "takes more than": "hang", "asks for more than": "memory"}
    return next((kind for words, kind in told.items() if words in sentence), "refused")


def fuzz(mutations: int, seed: int, folder: Path) -> Iterator[tuple[str, str, str]]:
    """Mutate and read so many datasets, all kinds in turn; yields (sample, mutation, outcome)."""
    samples = write_samples(folder)
    names = sorted(samples)
    secret = folder / "x"  # what a path out of the dataset would reach
    secret.write_text("secret")

    def attempt(number: int) -> tuple[str, str, str]:
        draw = random.Random(f"{seed} {number}")
        name = names[number % len(names)]
        place = folder / "mutated" / str(number)
        place.mkdir(parents=True)
        done = mutate(samples[name], place / samples[name].name, draw)
        result = outcome(place / samples[name].name, place / "cache")
        shutil.rmtree(place)
        return name, f"{number}: {done}", result

    with ThreadPoolExecutor(2) as threads:
        yield from threads.map(attempt, range(mutations))


def main() -> int:
    parser = argparse.ArgumentParser(description="read mutated datasets of all formats")
    parser.add_argument("--mutations", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    counts: Counter[tuple[str, str]] = Counter()
    faults = []
    with (
        tempfile.TemporaryDirectory() as folder,
        progress_bar("mutated datasets", options.mutations) as progress,
    ):
        for name, mutation, result in fuzz(options.mutations, options.seed, Path(folder)):
            counts[name, result.partition(":")[0]] += 1
            if result.startswith("FAULT") or result in ("crash", "hang", "memory"):
                faults.append(f"{name}, {mutation}: {result}")
            progress.advance()
    kinds = sorted({kind for _, kind in counts})
    print("format".ljust(24), *(kind.rjust(8) for kind in kinds))
    for name in sorted({name for name, _ in counts}):
        print(name.ljust(24), *(str(counts[name, kind]).rjust(8) for kind in kinds))
    print("\n".join(faults))
    return 1 if any("FAULT" in fault for fault in faults) else 0


if __name__ == "__main__":
    import fuzz_readers  # children find the functions of a module, not those of the main program

    sys.exit(fuzz_readers.main())
