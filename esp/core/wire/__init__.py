"""HTTP/2 and gRPC for servers and clients, without knowledge of etcd.

The files, from the bottom up: each imports only files of its own line and of lines above it.

    native, status, limits: marks for the compiler; codes and errors of gRPC; every bound of the wire
    frames: frames as bytes, error codes, the two kinds of fault
    traffic: bytes and messages that have passed
    budget, shares: memory and places that all clients share fairly
    ended: calls that have ended, for metrics and logs
    divided: header blocks with a part for each of several servers
    huffman, header_table, field_decoder, hpack: header blocks
    traces: traced calls, and the trace ids that go on to servers
    running_time, held_steps: a clock of running time; steps of coroutines that wait for their turn
    turns, context: which connection works when; what all connections of a process share
    message, request_message: messages of gRPC in frames; the one message of a unary call, in pieces
    request_encoder, request, request_decoder, response: heads of calls and answers, read and written
    glitches, ping_policy, owed_messages: pointless frames, PINGs too many, requests that do not come to their end
    header_block, table_update: a header block in several frames; the header table that esp does not use
    settings_acks, held_ack, recent_resets: acknowledgements owed and held back; streams that were reset lately
    pump, stalled: sends DATA that waits, in turns; finds DATA that stands still
    connection: bytes in turns, output, faults, the end of a connection
    stream, multiplexed: one stream; all streams of a connection
    frame_reader: each frame of the peer
    open_calls, admission: which calls of a client a connection takes, and the drain
    handler, server_stream: the interface of those who serve calls; one call at the server
    request_heads, server: heads of requests with their handlers; the server's end of a connection
    client_stream, client: one call at the client; the client's end of a connection
    gathered: messages of one call that leave together
    splice, call: a client's call joined to a call to a server; a call to a server that coroutines await
    local_calls: calls to this very process, of clients that speak another protocol
    plain, exchange: heads of HTTP/1.1 that were read before; one request with its answer
    http1_faults, http1: requests that are refused for their heads; HTTP/1.1 on the same port
    strangers, first_bytes: other protocols, told by their first bytes; whether a client asks something in them
    tls_faults, tls_records, tls: why TLS fails; records of TLS; a server's end of TLS in memory
    transport, client_tls: sockets; those of servers, with TLS
    accepted, accepted_tls, listener: those of clients, plain and with TLS; accepting and counting

The names that the layers above may use (tests/test_layers.py):

    native: mypyc_attr
    status: CODE_NAMES, Code, Status, RpcError, OK, DEADLINE_EXCEEDED
    limits: Limits, OF_A_CONNECTION, bounds, out_of_bounds
    frames: ErrorCode, MAX_FRAME_SIZE, PREFACE, SETTINGS, pack_u32, settings, unpack_u32
    budget: Account, BufferBudget
    shares: Shares, address_of
    turns: SLICE
    ended: EndedCall, Observer, Passed, Several, Took, UNKNOWN
    traces: Trace, Tracer, shares
    context: WireContext
    divided: COMPOSITE, DividedBlock
    hpack: Fields, decode, encode
    message: MessageReader, ENCODINGS, PREFIX_SIZE, prefix, format_timeout, quote, unknown_encoding
    request: RequestHead, is_grpc_type, malformed_method
    request_encoder: Forward, traced
    response: ResponseHead, refusal
    connection: Connection
    open_calls: CALL_BYTES
    admission: Admission
    server_stream: Handler, OVERLOADED, Refuse, ServerCall, Sink, ServerStream, INTERNAL_ERROR
    client_stream: ClientStream, STREAM_WINDOW
    client: ClientConnection
    gathered: Gathered
    traffic: Traffic, MessageCount, Messages
    splice: SplicedCall, LateCall, WaitingCall, StreamCall, WaitingStream, CountedCall, Place, NO_TRAILERS, REPLAY_BYTES
    call: MessageCall, Reader, Together, TogetherCall, BrokenCall, messages
    pump: Pending
    local_calls: LocalCalls
    plain: HttpRequest
    exchange: AfterBody, AnswerPage, AtOnce, Exchange, FindPage, MakeExchange, Page, Reply, Serve
    transport: ClientProtocol, TICK_SECONDS
    client_tls: TlsClientProtocol
    accepted: ServerProtocol
    listener: Listener

Nothing is imported here: a command that needs `status` alone loads no other file.
"""
