"""What esp tells of itself in numbers: counters that its parts keep anyway, gathered when somebody asks.

page      /metrics over HTTP/1.1 and HTTP/2
scrape    the families of a running proxy, in steps
limits    every limit with its use and its hits
process   the process and the build
lines     the lines of the log
walk      the parts that have counters; a walk over clients and shards
names     labels of methods and codes
text      families as text
families  families as plain data, which can be added up over processes
sums      what other workers add to the metrics of one
calls     counts clients' calls when they have ended
"""
