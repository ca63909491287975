"""Problems in, prompts out: files, datasets and the toy task, chat templates, the endless resumable stream.

``read_rows`` needs no model and no heavy library, so that bad data is found before anything is built or started.
"""

from fr3e_async.data.row import DataRow
from fr3e_async.data.rows import Rows, read_rows, toy_problems
from fr3e_async.data.sources import read_source
from fr3e_async.data.stream import PromptStream, group_id
from fr3e_async.data.toy import ensure_toy

__all__ = ["DataRow", "PromptStream", "Rows", "ensure_toy", "group_id", "read_rows", "read_source", "toy_problems"]
