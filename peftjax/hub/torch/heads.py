"""Adapter files whose head has no equal here, told by the reason."""

from __future__ import annotations

from collections.abc import Iterable

from peftjax.hub.tensors import AdapterFileError
from peftjax.hub.torch.config import Config
from peftjax.models.families import family_of
from peftjax.models.family import Model

_TASKS = {
    "QUESTION_ANS": "for answers that lie in a text",
    "SEQ_2_SEQ_LM": "of a decoder beside an encoder",
    "TOKEN_CLS": "for every token",
}
_MODULES = ("classifier", "lm_head", "qa_outputs", "score")


def check_heads(model: Model, config: Config, names: Iterable[str]) -> None:
    """Raise where a file trains a head that the models here do not have.

    Args:
        model: the module.
        config: what the file says of itself.
        names: of the file's tensors.

    Raises:
        AdapterFileError: it is the head of another task, or one with weights of its own
            where the model's output layer is its table of embeddings.
    """
    heads = {name.split(".")[0] for name in names}.intersection(_MODULES)
    task = config["task_type"] if isinstance(config["task_type"], str) else None
    task = "QUESTION_ANS" if "qa_outputs" in heads else task
    family = family_of(model)
    own = family.seq2seq and task == "SEQ_2_SEQ_LM"
    if heads and task in _TASKS and not own:
        raise AdapterFileError(
            f"{', '.join(sorted(heads))}: a head {_TASKS[task]} (task_type {task}), "
            "which has no equal here: models here have heads for whole sequences or "
            "images, or for the next token"
        )
    tied = family.tied(model)
    if tied is not None and "lm_head" in heads:
        raise AdapterFileError(
            f"lm_head is trained apart, but in this model the output layer is {tied} "
            "as well (tie_word_embeddings), and the two are one parameter. There is no "
            "equal here: untie them in the base model, and train the adapter on that"
        )


def check_tied(model: Model, paths: set[str]) -> None:
    """Raise if a table is adapted that is the output layer as well.

    The torch library then adapts the lookup alone, but for methods whose codec says
    `tied`; here the two are one parameter.
    """
    tied = family_of(model).tied(model)
    if tied is not None and tied in paths:
        raise AdapterFileError(
            f"{tied.partition('/')[0]} is adapted, which in this model is the output "
            "layer as well (tie_word_embeddings); the torch library adapts only the "
            "lookup. There is no equal here: untie them in the base model"
        )
