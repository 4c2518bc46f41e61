"""The log of the process.

    calls       the lines of single calls: the access log, and the log of slow calls
    first_key   the first key of a request, found in its bytes
    setup       the log as a whole: what esp logs goes to stderr, in a format and from a level
    recent      the last lines about shards, for the status page
    floods      counts repeated lines in place of writing them
    output      writes lines, without ever waiting for whoever reads them
    lines       log records as text and as JSON
    levels      the words for formats and levels
    text        parts of lines: a text without control characters, the first few of many names

From the top down; each file imports only files below it. A module of esp logs with `logging.getLogger("esp.PART")`.
"""
