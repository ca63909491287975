"""Durable writes, JSONL, checked JSON and the logs of processes: what ``data`` and ``store`` both stand on."""
