"""One file, one method, one paper."""
