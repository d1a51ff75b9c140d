"""GLoRA as its paper has it: a supernet, its search, one evaluation."""

from experiments.search.work import SEARCH, run

__all__ = ["SEARCH", "run"]
