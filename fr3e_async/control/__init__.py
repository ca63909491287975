"""The control plane: a pure ledger of groups, and the asyncio loop that carries out what it commands."""
