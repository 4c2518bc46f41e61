"""esp: several etcd clusters as one etcd v3 endpoint."""

# As in pyproject.toml, where a test compares them. To ask importlib.metadata takes longer than most imports here.
__version__ = "0.1.0"


def build() -> str:
    """How this esp runs: "compiled" if the wire is a module that mypyc has compiled, else "interpreted"."""
    from importlib.util import find_spec

    spec = find_spec("esp.core.wire.frames")
    return "interpreted" if spec is None or str(spec.origin).endswith((".py", ".pyc")) else "compiled"
