"""The status page `/ui`: what an operator wants to see of a running proxy, in a browser, with no further program."""
