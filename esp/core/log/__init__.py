"""The log of the process.

    text     parts of lines: a text without control characters, the first few of many names

A module of esp logs with `logging.getLogger("esp.PART")`.
"""
