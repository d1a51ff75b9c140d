"""What of this folder has examples to run."""

# of the torch library's environment
collect_ignore = [
    "benchmarks/peer_llm.py",
    "benchmarks/peer_torch.py",
    "parity/mrpc_torch.py",
]
