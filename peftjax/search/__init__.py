"""Search over the structures of a supernet."""

from peftjax.search.space import Space, draw

__all__ = ["Space", "draw"]
