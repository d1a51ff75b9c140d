"""A merged model in the Hugging Face layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftjax.hub.tensors import PathLike
from peftjax.models.family import Model
from peftjax.models.saving import save


def save_merged(
    folder: PathLike,
    model: Model,
    peft: Any,
    variables: Any,
    adapters: Mapping,
    *,
    gates: Any = None,
    source: PathLike | None = None,
) -> None:
    """Merge adapters and write the model in the Hugging Face layout.

    Args:
        folder: the folder to write; it must be absent or empty.
        model: the module that was adapted, one of `peftjax.models`.
        peft: what `adapt` returned.
        variables: the frozen model.
        adapters: `{path: {name: array}}`.
        gates: as for `peft.merge`.
        source: the folder the model came from, as for `peftjax.models.save`.

    Raises:
        FileExistsError: the folder is not empty.
        NotMergeable: as `peft.merge`.
    """
    save(folder, model, peft.merge(variables, adapters, gates), source=source)
