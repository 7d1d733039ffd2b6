"""ResNet backbones with spatial tokens: Pri3D's checkpoints (Hou et al. 2021), ImageNet's, or random."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from bimact.config import EncoderConfig
from bimact.encoder.base import ImageEncoder
from bimact.encoder.frozen_norm import fold_frozen_norms, fold_norms_for_inference
from bimact.encoder.weights import choose_source, download, misfits, read_state_dict, strip_prefix
from bimact.errors import UserError

_WEIGHTS = {
    "resnet18": torchvision.models.ResNet18_Weights.IMAGENET1K_V1,
    "resnet34": torchvision.models.ResNet34_Weights.IMAGENET1K_V1,
    "resnet50": torchvision.models.ResNet50_Weights.IMAGENET1K_V1,
}
# Pooling before the ReLU is equivalent, and leaves a quarter of the elements to the ReLU.
_STAGES = ("conv1", "bn1", "maxpool", "relu", "layer1", "layer2", "layer3", "layer4")
_LAYERS = ("layer1", "layer2", "layer3", "layer4")
_ENOUGH = 0.9  # fraction of the backbone's tensors that a file has to have


class Pri3dEncoder(ImageEncoder):
    """A torchvision ResNet without its pooling and classifier: one token per 32 × 32 pixels.

    Batch norm is frozen, as in the ACT paper: batches are too small and too alike for its statistics. Images
    are normalised as ImageNet's, which is what Pri3D was trained with (`pretrain/pri3d/dataset/scannet.py` of
    https://github.com/Sekunde/Pri3D, revision 9086edd).

    `encoder.pretrained` is:

    - a path to a file of Pri3D's authors (`{"model": {"backbone.encoder.conv1.weight": …}, …}`, of Res18UNet
      or Res50UNet; the decoder, the 3D network and the optimizer's state are left out), to one that their
      `pri3d_to_torchvision.py` wrote, or to any other state dict with torchvision's names, whatever their
      prefix;
    - `imagenet`: torchvision's weights (IMAGENET1K_V1), from which the authors' own training starts too;
    - `true`: the same as `imagenet`. The authors publish their files on Google Drive alone (the links are in
      their README), from where no program can fetch them reliably: download one by hand and give its path.
    - `null`: random weights.
    """

    def __init__(self, config: EncoderConfig) -> None:
        depth = config.model_name or "resnet18"
        if depth not in _WEIGHTS:
            raise UserError(f"encoder.model_name of pri3d is {' or '.join(_WEIGHTS)}, not '{depth}'")
        source = choose_source(config, f"{depth} of encoder pri3d", ["imagenet"], usual="imagenet")
        resnet = getattr(torchvision.models, depth)(weights=None, norm_layer=FrozenBatchNorm2d)
        super().__init__(config, out_dim=resnet.fc.in_features)
        fold_frozen_norms(resnet)
        self.backbone = nn.Sequential()
        for name in _STAGES:
            self.backbone.add_module(name, getattr(resnet, name))
        if not config.weights_from_checkpoint:
            if source.file is not None:
                _load_file(self.backbone, source.file, depth)
            elif source.tag is not None:
                _load_imagenet(self.backbone, depth, is_default=config.pretrained is True)
        self.spatial = config.spatial is not False

    def learning_parts(self) -> Sequence[nn.Module]:
        if self.train_last > len(_LAYERS):
            raise UserError(f"encoder.train_last is {self.train_last}, a ResNet has {len(_LAYERS)} stages")
        return [self.backbone.get_submodule(name) for name in _LAYERS[-self.train_last :]]

    def trunk_features(self, images: Tensor) -> Tensor:
        if not self.train_last:
            return super().trunk_features(images)
        return self.backbone[: -self.train_last](images).permute(0, 2, 3, 1)

    def trunk_shape(self, height: int, width: int) -> tuple[int, int, int]:
        if not self.train_last:
            return super().trunk_shape(height, width)
        blank = torch.zeros(1, 3, height, width, dtype=torch.uint8, device=self.mean.device)
        with torch.no_grad():
            _, rows, columns, channels = self.trunk(blank).shape
        return rows, columns, channels

    def head(self, features: Tensor) -> Tensor:
        if not self.train_last:
            return features
        x = self.backbone[-self.train_last :](features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x if self.spatial else x.mean(dim=(1, 2), keepdim=True)

    def prepare_for_inference(self) -> None:
        fold_norms_for_inference(self.backbone)

    def features(self, images: Tensor) -> Tensor:
        x = self.backbone(images)  # (N, C, rows, columns)
        if not self.spatial:
            return x.mean(dim=(2, 3)).unsqueeze(1)
        return x.flatten(2).transpose(1, 2)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return (-(-height // 32), -(-width // 32)) if self.spatial else (1, 1)


def _load_imagenet(backbone: nn.Module, depth: str, is_default: bool) -> None:
    with download(f"torchvision's ImageNet weights of {depth}", hub=False):
        state = _WEIGHTS[depth].get_state_dict(progress=True, check_hash=True)
    backbone.load_state_dict({name: state[name] for name in backbone.state_dict()})
    if is_default:
        print(
            f"Encoder pri3d: torchvision's ImageNet weights of {depth}; for Pri3D's own, download a file "
            "that https://github.com/Sekunde/Pri3D links to, and set encoder.pretrained to its path",
            flush=True,
        )


def _load_file(backbone: nn.Module, path: Path, depth: str) -> None:
    """Load a file's tensors of the backbone, and print their number.

    Raises:
        UserError: if a tenth or more is missing, or the file is of a deeper network.
    """
    own = backbone.state_dict()
    state = strip_prefix(read_state_dict(path), own)
    wrong = set(misfits(backbone, state))
    found = len(own) - len(wrong)
    deeper = [name for name in state if name.startswith("layer") and name not in own and "num_batches" not in name]
    if deeper or found < _ENOUGH * len(own):
        reason = f"it has '{deeper[0]}' beyond it" if deeper else f"only {found} of its {len(own)} tensors match"
        raise UserError(
            f"{path} does not fit {depth}, {reason}: set encoder.model_name to the network that the file is "
            f"of ({', '.join(_WEIGHTS)})"
        )
    backbone.load_state_dict({name: state[name] for name in own if name not in wrong}, strict=False)
    print(f"Pri3D weights {path}: {found} of {len(own)} tensors of the backbone matched", flush=True)
