"""Search over the structures of a supernet, and over the ranks of AdaLoRA."""

from peftjax.search.budget import allocate
from peftjax.search.evolve import Candidate, Found, evolve
from peftjax.search.score import make_score
from peftjax.search.space import Space, draw

__all__ = ["Candidate", "Found", "Space", "allocate", "draw", "evolve", "make_score"]
