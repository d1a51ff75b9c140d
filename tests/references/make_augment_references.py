"""Record what timm's operations of RandAugment make of a small image.

    pip install timm torchvision pillow
    python tests/references/make_augment_references.py tests/files/augment.npz

Every operation of `rand-m9-mstd0.5-inc1` is done at two levels of 10, with either sign
where it has one, on `image`; keys are `NAME|SHARE`. Nothing of peftjax is used here.
"""

import sys
from unittest import mock

import numpy as np
from PIL import Image
from timm.data import auto_augment as timm

SIGNED = ("Rotate", "ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing")
SIGNED += ("SharpnessIncreasing", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
HPARAMS = {"img_mean": (124, 116, 104)}
OPTIONS = {"fillcolor": HPARAMS["img_mean"], "resample": Image.BICUBIC}


def main(path):
    """Write the file."""
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 200, (4, 5, 3)).astype(np.uint8))
    image = smooth.resize((13, 10), Image.BICUBIC)
    found = {"image": np.asarray(image)}
    for name in timm._RAND_INCREASING_TRANSFORMS:
        signs = (1, -1) if name in SIGNED else (1,)
        for level in (4.5, 9.3):
            for sign in signs:
                draw = 0.1 if sign > 0 else 0.9  # timm negates above a half
                with mock.patch("random.random", return_value=draw):
                    level_to_arg = timm.LEVEL_TO_ARG[name]
                    given = level_to_arg(level, HPARAMS) if level_to_arg else ()
                out = timm.NAME_TO_OP[name](image, *given, **OPTIONS)
                short = name.replace("Increasing", "").replace("Rel", "")
                found[f"{short}|{sign * level / 10}"] = np.asarray(out)
    np.savez_compressed(path, **found)


if __name__ == "__main__":
    main(sys.argv[1])
