"""Record how torchvision and timm cut small images for training and for testing.

    pip install timm torchvision pillow
    python tests/references/make_view_references.py tests/files/views.npz

`image|H|W` is cut by `shorter|...` (shorter side to 10, middle 10), `margin|...` (to
16 squared, middle 14) and `crop|...|N` (a random part to 9 by 9). `draws|...|N` are the
numbers that timm drew for it, `box|...|N` what it made of them. Nothing of peftjax
is used here.
"""

import random
import sys
from unittest import mock

import numpy as np
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

BICUBIC = InterpolationMode.BICUBIC
SIZES = ((13, 21), (30, 17), (12, 12), (8, 61), (70, 9))
DRAWS = 6


def main(path):
    """Write the file."""
    rng, found = np.random.default_rng(0), {}
    random.seed(0)
    shorter = Compose([Resize(10, BICUBIC), CenterCrop(10)])
    margin = Compose([Resize((16, 16), BICUBIC), CenterCrop(14)])
    cut = RandomResizedCropAndInterpolation(9, interpolation="bicubic")
    for height, width in SIZES:
        pixels = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
        image, name = Image.fromarray(pixels), f"{height}|{width}"
        found[f"image|{name}"] = pixels
        found[f"shorter|{name}"] = np.asarray(shorter(image))
        found[f"margin|{name}"] = np.asarray(margin(image))
        for number in range(DRAWS):
            drawn = []

            def note(draw, drawn=drawn):
                def call(*bounds):
                    drawn.append(draw(*bounds))
                    return drawn[-1]

                return call

            with (
                mock.patch("random.uniform", note(random.uniform)),
                mock.patch("random.randint", note(random.randint)),
            ):
                box = cut.get_params(image, cut.scale, cut.ratio)
            with mock.patch.object(cut, "get_params", return_value=box):
                found[f"crop|{name}|{number}"] = np.asarray(cut(image))
            found[f"draws|{name}|{number}"] = np.array(drawn)
            found[f"box|{name}|{number}"] = np.array(box)
    np.savez_compressed(path, **found)


if __name__ == "__main__":
    main(sys.argv[1])
