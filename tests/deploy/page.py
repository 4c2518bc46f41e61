"""The boxes of pages under docs/, and one who types them: so the pages say what the tests do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

from esp.core.local import LocalEtcd
from tests.harness import peer

ROOT = Path(__file__).parent.parent.parent


def boxes(page: str) -> dict[str, str]:
    """What is in each box of a page under docs/ that has a name in the comment above it."""
    text = (ROOT / "docs" / page).read_text()
    found = re.findall(r"(?ms)<!-- tried: ([\w-]+) -->\n *```\w+\n(.+?)^ *```$", text)
    return {name: textwrap.dedent(block) for name, block in found}


BLOCKS = boxes("operations.md")


class Operator:
    """Types what the page says. Its PATH has esp, and etcdctl and etcdutl of the newest etcd."""

    def __init__(self, folder: Path, shards: dict[str, LocalEtcd], blocks: dict[str, str] = BLOCKS) -> None:
        self.folder = folder
        self.blocks = blocks
        self.done: list[str] = []
        programs = folder / "bin"
        programs.mkdir()
        (programs / "esp").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m esp "$@"\n')
        (programs / "esp").chmod(0o755)
        for name in ("etcdctl", "etcdutl"):
            (programs / name).symlink_to(peer(name))
        self.config = folder / "esp.yaml"
        self.variables = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "ESP_CONFIG": str(self.config),
            **{name.upper(): shard.endpoint for name, shard in shards.items()},
        }

    def types(self, name: str, **variables: str) -> str:
        """A block of the page; its output. Every line of it has to succeed."""
        self.done.append(name)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self.blocks[name]],
            cwd=self.folder,
            env={**os.environ, **self.variables, **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{self.blocks[name]}{done.stdout}{done.stderr}"
        return done.stdout + done.stderr
