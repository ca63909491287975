"""What a run would occupy, and which actor ratios suit a cluster. ``python -m fr3e_async.plan``."""
