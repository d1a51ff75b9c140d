"""Where adapters start from, when data, gradients or a coded base say so."""

from peftjax.starts.corda import corda
from peftjax.starts.eva import Started, eva
from peftjax.starts.loftq import loftq
from peftjax.starts.lora_ga import lora_ga

__all__ = ["Started", "corda", "eva", "loftq", "lora_ga"]
