"""Problems in, prompts out: files, datasets and the toy task, chat templates, the endless resumable stream.

``read_rows`` needs no model and no heavy library, so that bad data is found before anything is built or started.
"""
