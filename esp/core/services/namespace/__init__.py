"""The namespace of a proxy, between the wire and the handlers of all RPCs.

    fields     which fields of etcd's messages hold keys
    forms      the changes to the fields of a message, made of its descriptor
    rewrite    a message with its keys changed by its form, made of its bytes as they come
    answer     one client's answers: rewritten, and sent as the client reads
    call       a call as the handlers inside see it: requests with the prefix, answers from which it is taken
    handler    the handler around another one

From the bottom up; each file imports only files above it.
"""

from esp.core.services.namespace.fields import CONTAINED, HOLDS_ALL, KEYS, NO_KEYS
from esp.core.services.namespace.handler import InNamespace

__all__ = ["CONTAINED", "HOLDS_ALL", "KEYS", "NO_KEYS", "InNamespace"]
