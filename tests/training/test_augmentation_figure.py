"""The picture of what training sees: the panels are the frames and their changes, in the encoder's size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bimact.cli import main
from bimact.config import load_config
from bimact.training.augmentation import NUMBERS, augment_images
from bimact.training.augmentation_figure import VIEWS, augmentation_figure, kinds_line


def test_panels_are_the_recorded_frame_the_encoders_input_and_changes_of_it() -> None:
    settings = [
        "encoder.name=conv",
        "encoder.crop=0.25,0.5,0.5,0.5",
        "encoder.image_size=8,16",
        "augmentation.erasing=1",
    ]
    config = load_config(None, settings)
    frames = np.random.default_rng(0).integers(0, 256, (2, 16, 32, 3), dtype=np.uint8)
    figure = augmentation_figure({"top": frames}, config, seed=5)
    rows = np.array(figure.axes).reshape(2, 2 + VIEWS)
    for number, axes in enumerate(rows):
        recorded, seen, *augmented = [np.asarray(panel.get_images()[0].get_array()) for panel in axes]
        assert np.array_equal(recorded, frames[number])
        assert np.array_equal(seen, frames[number, 4:12, 16:])
        drawn = torch.rand(1 + VIEWS, NUMBERS, generator=torch.Generator().manual_seed(5 + number))
        for view, picture in enumerate(augmented):
            image = torch.from_numpy(frames[number : number + 1].copy()).permute(0, 3, 1, 2)
            augment_images(image, drawn[view + 1 : view + 2], config.augmentation, (4, 16, 8, 16))
            assert np.array_equal(picture, image[0, :, 4:12, 16:].permute(1, 2, 0).numpy())
            assert (picture != seen).any()
    (edge,) = rows[0, 0].patches
    assert (edge.get_x(), edge.get_y(), edge.get_width(), edge.get_height()) == (15.5, 3.5, 16, 8)


@pytest.mark.slow
def test_the_command_draws_each_camera(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "augmented.png"
    arguments = ["view", str(dataset), "--augment", str(picture), "--cameras", "right", "--augmentation.hue", "null"]
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert not end.value.code
    told = capsys.readouterr().out
    assert "Augmentation: shift up to 5%; 3 of brightness 0.8 to 1.2" in told and "hue" not in told
    assert "augment is false in these settings" in told
    assert np.asarray(Image.open(picture)).std() > 20
    with pytest.raises(SystemExit) as end:
        main(arguments)  # the file is there
    assert end.value.code == 2
    with pytest.raises(SystemExit) as end:
        main(["view", str(dataset), "--augmentation.hue", "null"])
    assert end.value.code == 2 and "belong to --augment" in capsys.readouterr().err


def test_no_kind_is_said() -> None:
    config = load_config(None, ["augmentation.translate=0", "augmentation.max_num_transforms=0"])
    assert kinds_line(config) == "no kind of augmentation is set"
