"""Thin Ray shells around the engine, the verifier and the learner rank, and the proxies that make them fit the ports."""
