"""What a run keeps on disk: its directory, checkpoints, rollouts, journal, ledger log, summary, model card, evaluations."""
