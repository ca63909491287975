"""``python -m fr3e_async COMMAND …``: ``fr3e``, where the program is not on the path."""

from fr3e_async.cli.main import entry

if __name__ == "__main__":
    entry()
