"""The chat template of a tokenizer's own file, run where it can do no harm.

A template is a received program. It runs in jinja2's sandbox, which keeps it from
Python's objects, and in a process of its own (`template_process.py`) with limits on
time and memory, which a sandbox alone does not set.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftjax.data import template_process
from peftjax.data.chat import Part
from peftjax.data.errors import DataError, json_object, read_text
from peftjax.data.gguf_file import open_gguf

Messages = Sequence[Mapping[str, str]]
SECONDS = 60.0  # of a process
_CHUNK = 4096  # conversations of one process, whose memory is bounded
_LONGEST = 2**20  # characters of a template
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True)
class ChatTemplate:
    """A template and the special tokens that it may name.

    Attributes:
        where: the file it comes from, for messages.
        text: of the template.
        special: `{"eos_token": "<|im_end|>", ...}`.
    """

    where: str
    text: str
    special: Mapping[str, str]

    def render(
        self, conversations: Sequence[Messages], prompt: bool = True
    ) -> list[str]:
        """Return the texts of conversations.

        Args:
            conversations: messages `{"role", "content"}` of each.
            prompt: end with what lets the assistant answer.

        Raises:
            DataError: the template fails, takes too long or too much memory.
        """
        return self._run([(list(one), prompt) for one in conversations])

    def parts(self, conversations: Sequence[Messages]) -> list[list[Part]]:
        """Return the parts of conversations, whose assistant's turns are learned.

        A turn is what the template adds to the prompt for it, up to its last end token;
        what follows, a line break perhaps, is not.

        Raises:
            DataError: as `render`; or the template does not write turn after turn.
        """
        jobs, places = [], []
        for number, messages in enumerate(conversations):
            for i, message in enumerate(messages):
                if message["role"] == "assistant":
                    jobs += [(messages[:i], True), (messages[: i + 1], False)]
                    places.append(number)
        texts = iter(self._run(jobs))
        result: list[list[Part]] = [[] for _ in conversations]
        done = [""] * len(conversations)
        for number, prompt, turn in zip(places, texts, texts):
            if not turn.startswith(prompt) or not prompt.startswith(done[number]):
                raise DataError(
                    f"{self.where}: the template of conversation {number + 1} does not "
                    "write turn after turn, so that what is learned is not known; use "
                    "another template"
                )
            answer, end = turn[len(prompt) :], self.special.get("eos_token", "")
            cut = answer.rfind(end) + len(end) if end and end in answer else len(answer)
            result[number] += [
                Part(prompt[len(done[number]) :]),
                Part(answer[:cut], True),
            ]
            done[number] = prompt + answer[:cut]
        return result

    def _run(self, jobs: Sequence[tuple[Messages, bool]]) -> list[str]:
        chunks = [jobs[i : i + _CHUNK] for i in range(0, len(jobs), _CHUNK)]
        return [text for chunk in chunks for text in self._rendered(chunk)]

    def _rendered(self, jobs: Sequence[tuple[Messages, bool]]) -> list[str]:
        given = {"template": self.text, "special": dict(self.special), "jobs": jobs}
        command = [sys.executable, "-I", template_process.__file__]
        try:
            done = subprocess.run(
                command,
                input=json.dumps(given).encode(),
                capture_output=True,
                timeout=SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise DataError(
                f"{self.where}: the chat template took too long; use another template"
            ) from error
        if done.returncode == template_process.NO_JINJA:
            raise ImportError("chat templates need jinja2: pip install 'peftjax[text]'")
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise DataError(
                f"{self.where}: the chat template failed "
                f"({said[-1][:200] if said else f'exit {done.returncode}'})"
            )
        return json.loads(done.stdout)


def load_chat_template(path: str | os.PathLike[str]) -> ChatTemplate:
    """Return the chat template beside a tokenizer.

    It is `chat_template.jinja`, else of `tokenizer_config.json`, else of the GGUF file.

    Args:
        path: the folder of the model, or its GGUF file.

    Raises:
        DataError: there is none, or the files are damaged.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    settings = folder / "tokenizer_config.json"
    config = json_object(settings, read_text(settings)) if settings.is_file() else {}
    special = {name: _token(config.get(name)) for name in _SPECIAL}
    file, text = folder / "chat_template.jinja", config.get("chat_template")
    where = settings
    if file.is_file():
        where, text = file, read_text(file)
    found = [path] if path.suffix == ".gguf" else sorted(folder.glob("*.gguf"))
    if text is None and found:
        where, facts = found[0], open_gguf(found[0]).facts
        text = facts.get("tokenizer.chat_template")
        listed = facts.get("tokenizer.ggml.tokens")
        tokens = listed if isinstance(listed, list) else []
        for name in ("bos", "eos"):
            number = facts.get(f"tokenizer.ggml.{name}_token_id")
            if isinstance(number, int) and 0 <= number < len(tokens):
                key = f"{name}_token"
                special[key] = special[key] or _token(tokens[number])
    if not isinstance(text, str) or not 0 < len(text) <= _LONGEST:
        raise DataError(f"{where}: expected a chat template, found {text!r:.80}")
    return ChatTemplate(str(where), text, {k: v for k, v in special.items() if v})


def _token(found: Any) -> str:
    """Return a special token, which older files wrap in an object."""
    content = found.get("content") if isinstance(found, dict) else found
    return content if isinstance(content, str) else ""
