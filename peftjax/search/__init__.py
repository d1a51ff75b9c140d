"""Search over a supernet's structures, AdaLoRA's ranks, and weights of modules."""

from peftjax.search.budget import allocate
from peftjax.search.evolve import Candidate, Found, evolve
from peftjax.search.lorahub import Weighed, weigh
from peftjax.search.score import make_score
from peftjax.search.space import Space, draw

__all__ = [
    "Candidate",
    "Found",
    "Space",
    "Weighed",
    "allocate",
    "draw",
    "evolve",
    "make_score",
    "weigh",
]
