"""``python -m fr3e_async.main config=FILE [key=value ...]``: ``fr3e train``, as ``ray job submit`` and schedulers start it."""

from fr3e_async.cli.main import entry

if __name__ == "__main__":
    entry("train")
