"""The namespace of a proxy, between the wire and the handlers of all RPCs.

    fields     which fields of etcd's messages hold keys
    forms      the changes to the fields of a message, made of its descriptor
    rewrite    a message with its keys changed by its form, made of its bytes as they come
    request    the requests of one streaming call, message by message
    answer     the answers of one call, message by message
    backlog    the answers of one call that wait for the client to read
    call       a call as the handlers inside see it: requests with the prefix, answers from which it is taken
    handler    the handler around another one

From the bottom up; each file imports only files above it.
"""

from esp.core.services.namespace.fields import CONTAINED, HOLDS_ALL, KEYS, NO_KEYS
from esp.core.services.namespace.handler import InNamespace, in_namespace

__all__ = ["CONTAINED", "HOLDS_ALL", "KEYS", "NO_KEYS", "InNamespace", "in_namespace"]
