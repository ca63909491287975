"""Fakes for tests and benchmarks, importable by Ray workers."""
