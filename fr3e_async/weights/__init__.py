"""Versioned weights as buckets of checksummed arrays, and how they reach another process of the same host."""
