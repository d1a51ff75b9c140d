"""GLoRA as its paper has it: a supernet, its search, one evaluation."""

from experiments.search.work import run

__all__ = ["run"]
