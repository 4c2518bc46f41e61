"""esp: several etcd clusters as one etcd v3 endpoint."""
