"""Small GLUE sources made by the tests, in both layouts."""

from pathlib import Path

import numpy as np

from peftjax.data import glue

WORDS = "the a cat dog sat ran on mat hill über naïve quick , . ?".split()


def sentence(number: int, length: int | None = None) -> str:
    draw = np.random.default_rng(number)
    return " ".join(draw.choice(WORDS, length or draw.integers(3, 12)))


def rows(task: str, split: str, count: int) -> list[dict]:
    """Return records with TFDS's columns; the labels of test splits are withheld."""
    spec = glue.TASKS[task]
    draw = np.random.default_rng(count)
    return [
        {
            **{name: sentence(99 * i + j) for j, name in enumerate(spec.text)},
            "label": -1
            if split.startswith("test")
            else int(draw.integers(spec.classes))
            if spec.classes
            else float(np.float32(draw.uniform(0, 5))),
            "idx": i,
        }
        for i in range(count)
    ]


def write_parquet(folder: Path, task: str, split: str, records: list[dict]) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    file = folder / task / f"{split}.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(records), file)
    return file


def write_task(folder: Path, task: str, counts: dict[str, int]) -> dict[str, list]:
    records = {split: rows(task, split, count) for split, count in counts.items()}
    for split, part in records.items():
        write_parquet(folder, task, split, part)
    return records


def write_tokenizer(folder: Path) -> Path:
    """Train a BERT-like tokenizer on a few sentences; return its file."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=80, special_tokens=special)
    tokenizer.train_from_iterator(map(sentence, range(50)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    # What a file was last used with must not leak into ours.
    tokenizer.enable_padding(length=7)
    tokenizer.enable_truncation(5)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"
