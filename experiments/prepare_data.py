"""Turn local files into data sets of TFDS, so that one path reads all data.

    python -m experiments.prepare_data glue --source DIR --data-dir DIR
    python -m experiments.prepare_data vtab --source DIR --data-dir DIR
    python -m experiments.prepare_data images --source DIR --data-dir DIR

`glue`: parquet, or GLUE's own folders or zip files (`peftjax.data.glue_files`).
`vtab`: the task folders of torch papers (`peftjax.data.vtab_folder`).
`images`: npz files and class folders (`peftjax.data.image_files`).

Every task found in the source is written, or those named by `--tasks`. A task that is
there already is left as it is. For each split the size, the class counts and the
published size are printed. TensorFlow is needed only for splits over a gigabyte.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from peftjax.data import (
    glue,
    glue_files,
    image_files,
    images,
    source,
    vtab,
    vtab_folder,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare; return 0, or 1 after an error or where no task was found."""
    options = _parser().parse_args(arguments)
    if not options.source.is_dir():
        print(f"error: --source {options.source}: no such folder", file=sys.stderr)
        return 1
    prepare, show = {
        "glue": (glue_files.prepare, _show_glue),
        "vtab": (image_files.prepare_vtab, _show_vtab),
        "images": (_prepare_images, _show_images),
    }[options.kind]
    tasks = options.tasks or _found(options.kind, options.source)
    if not tasks:
        print(f"error: no {options.kind} task in {options.source}", file=sys.stderr)
    failed = [
        task
        for task in tasks
        if not _one(task, prepare, show, options.source, options.data_dir)
    ]
    return 1 if failed or not tasks else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.prepare_data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", choices=["glue", "vtab", "images"])
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--tasks", type=lambda text: text.split(","), default=[])
    return parser


def _found(kind: str, folder: Path) -> list[str]:
    if kind == "glue":
        return [task for task in glue.TASKS if glue_files.is_there(task, folder)]
    if kind == "vtab":
        return [task for task in vtab.TASKS if vtab_folder.is_folder(folder, task)]
    files = [path.stem for path in folder.glob("*.npz")]
    folders = [path.name for path in folder.iterdir() if path.is_dir()]
    return sorted(files + [name for name in folders if not name.startswith(".")])


def _one(
    task: str,
    prepare: Callable[[str, Path, Path], Path],
    show: Callable[[str, Path], None],
    folder: Path,
    data_dir: Path,
) -> bool:
    try:
        print(f"{task}: wrote {prepare(task, folder, data_dir)}")
    except FileExistsError as error:
        print(f"{task}: left as it is ({error})")
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {task}: {error}", file=sys.stderr)
        return False
    show(task, data_dir)
    return True


def _prepare_images(task: str, folder: Path, data_dir: Path) -> Path:
    file = folder / f"{task}.npz"
    if file.is_file():
        return image_files.prepare_npz(file, data_dir)
    return image_files.prepare_folder(folder / task, data_dir)


def _show_glue(task: str, data_dir: Path) -> None:
    for split in source.splits(f"glue/{task}", data_dir):
        print(f"  {glue.describe(task, split, glue.load(task, split, data_dir))}")


def _show_vtab(task: str, data_dir: Path) -> None:
    for split in source.splits(f"vtab/{task}", data_dir):
        print(f"  {vtab.load(task, split, data_dir).describe()}")


def _show_images(task: str, data_dir: Path) -> None:
    for split in source.splits(f"images/{task}", data_dir):
        print(f"  {images.load(task, split, data_dir, size=1).describe()}")


if __name__ == "__main__":
    sys.exit(main())
