"""What a run leaves behind and shows: its directory, metrics, summary, console view, TensorBoard events, logs."""
