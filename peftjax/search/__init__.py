"""Search over the structures of a supernet."""

from peftjax.search.subnet import Subnet, to_glora

__all__ = ["Subnet", "to_glora"]
