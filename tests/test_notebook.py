"""The notebooks run from top to bottom, and store no output."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.slow

NOTEBOOKS = sorted(Path(__file__).parents[1].glob("notebooks/*.ipynb"))
# Of each, what its last cell prints.
PRINTED = {
    "composition": r"learned 0\.[3-9]\d\d on test, merged differs by \d(\.\d)?e-0[5-9]",
    "four_bits": r"float32: loss 0\.[01]\d, NF4, double: loss 0\.[01]\d",
    "glora_search": r"found: test 0\.[6-9]\d\d; 16 random ones of its size: 0\.",
    "new_adapter": r"GainLoRA .*test 0\.[89]\d\d, merged differs by \d(\.\d)?e-0[5-9]",
    "serve_a_bank": r"ranks 2 and 4 in one bank: a \(2, 32, 4\)",
    "tour": r"hra\.safetensors: [\d,]+ bytes, read back equal: True",
    "what_lora_learns": r"90% of OFT: ranks \d+ to \d+, test 0\.[6-9]\d\d against 0\.",
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(notebook.cells) < 20
    assert not any(cell.outputs or cell.execution_count for cell in code)
    NotebookClient(
        notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    text = "".join(output.get("text", "") for output in code[-1].outputs)
    assert re.search(PRINTED[path.stem], text), text
