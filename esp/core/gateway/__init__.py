"""etcd's JSON gateway: HTTP/1.1 requests with JSON bodies, served as gRPC calls to this very process.

The files, from the bottom up: each imports only files of its own line and of lines above it.

    paths: the paths under /v3/, and the RPC of each
    shapes: what reading and printing need to know of each type of message
    values: JSON values cut from a body, as Go's encoding/json does
    fields, reading: values of fields in bytes; a JSON value as a message in bytes
    printing: a message in bytes as JSON, in steps
    errors: HTTP status codes and error bodies
    plan: the head of a request as the plan of a call
    body, answer: the body of a request as messages; the messages of an answer as its JSON
    call: one request: its gRPC call to this process, between body and answer
    site: hosts, CORS and redirects as etcd has them; which requests are the gateway's, and which are pages

A request goes through the same handlers, limits and deadlines as any gRPC call of the same client: `LocalCalls` in the
wire joins a client's end to a server's end in memory.
"""

from esp.core.gateway.site import Site

__all__ = ["Site"]
