"""Benchmarks of the package: ``python -m benchmarks [section ...]``, every section without arguments."""
