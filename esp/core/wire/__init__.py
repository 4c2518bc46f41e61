"""HTTP/2 and gRPC, server and client, without knowledge of etcd."""
