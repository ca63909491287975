"""``python -m fr3e_async.help FILE``: rewrites the tables of settings in a .md file, or writes their JSON Schema to a .json file."""

import sys
from pathlib import Path

from fr3e_async.settings.help import refresh

if __name__ == "__main__":
    refresh(Path(sys.argv[1]))
