"""The only DeepSpeed code: data-parallel ranks that train the policy, export its weights and keep its checkpoints."""
