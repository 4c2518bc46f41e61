"""esp: several etcd clusters as one etcd v3 endpoint."""

# As in pyproject.toml, where a test compares them. To ask importlib.metadata takes longer than most imports here.
__version__ = "0.1.0"
