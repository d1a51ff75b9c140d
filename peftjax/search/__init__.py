"""Search over the structures of a supernet."""

from peftjax.search.evolve import Candidate, Found, evolve
from peftjax.search.score import make_score
from peftjax.search.space import Space, draw

__all__ = ["Candidate", "Found", "Space", "draw", "evolve", "make_score"]
