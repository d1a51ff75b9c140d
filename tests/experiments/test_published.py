"""The papers' numbers by the names of a table."""

import pytest

from experiments.arguments import UnknownName
from experiments.published import Numbers
from tests.helpers.report_case import GLUE, VIT


def test_published_numbers_by_our_names():
    published = {
        "file": "glue_hra.csv",
        "backbone": "DeBERTaV3-base",
        "methods": {"hra": "HRA r=8 lambda=0", "full": "Full Fine-tune"},
        "tasks": {"mrpc": "MRPC", "rte": "RTE"},
        "metrics": {"mrpc": "accuracy"},
    }
    numbers = Numbers.of({"published": published})
    rte = numbers.score("hra", "rte")
    assert rte is not None and (rte.metric, "Table 2" in rte.source) == (
        "accuracy",
        True,
    )
    assert numbers.score("hra", "mrpc") is None  # published in another metric
    full = numbers.score("full", "mrpc")
    assert full is not None and (full.value, str(full)) == (89.46, "89.46")
    assert numbers.score("full", "wnli") is None and numbers.score("ia3", "rte") is None
    assert (numbers.parameters_m("hra"), numbers.parameters_m("ia3")) == (0.66, None)
    vtab = {"file": "vtab1k.csv", "backbone": VIT, "methods": {"glora": "GLoRA"}}
    numbers = Numbers.of({"published": vtab})
    assert numbers.parameters_m("glora") is None  # the file has none
    cifar = numbers.score("glora", "cifar")
    assert cifar is not None and (cifar.value, cifar.metric) == (76.4, "")
    assert Numbers.of({}).score("glora", "cifar") is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"fil": "x"}, "unknown key of table.published 'fil': did you mean file"),
        ({"file": "../../setup.csv"}, "unknown file"),
        ({"file": "hparams_hra_glue.csv"}, "unknown file"),
        ({"tasks": {"cola": "COLA"}}, "unknown task .*'COLA': did you mean CoLA"),
        ({"metrics": {"cola": "accurcy"}}, "unknown metric .*did you mean accuracy"),
    ],
)
def test_unknown_published_names_are_told_with_the_nearest(change, told):
    with pytest.raises(UnknownName, match=told):
        Numbers.of({"published": {**GLUE, **change}})
    with pytest.raises(UnknownName, match="expected 'backbone' too"):
        Numbers.of({"published": {"file": "glue_hra.csv", "methods": {}}})
