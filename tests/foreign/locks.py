"""A program that has two workers contend for a lock of etcd3aio, and prints in how many rounds both held it.

`locks.py PORT ROUNDS`. A program of its own, because etcd3aio brings its own etcd messages. The client sorts the keys
below the lock's prefix by create_revision itself. The leases of the workers, and so their keys, are of etcd's choice.
"""

from __future__ import annotations

import asyncio
import json
import sys

from etcd3aio import Etcd3Client

TRY_SECONDS = 0.5
"""How long the second worker waits for the lock that the first one holds."""


async def contend(port: str, rounds: int) -> dict[str, object]:
    """How many rounds both held it; and the errors that workers got."""
    both, refused = 0, set()
    async with Etcd3Client([f"127.0.0.1:{port}"]) as one, Etcd3Client([f"127.0.0.1:{port}"]) as two:
        for _ in range(rounds):
            first, second = one.lock("it"), two.lock("it")
            try:
                await first.acquire()
                try:
                    await asyncio.wait_for(second.acquire(), TRY_SECONDS)
                    both += 1
                except TimeoutError:
                    pass
            except Exception as error:
                refused.add(str(error))
            finally:
                await second.release()
                await first.release()
    return {"both": both, "refused": sorted(refused)}


sys.stdout.write(json.dumps(asyncio.run(contend(sys.argv[1], int(sys.argv[2])))) + "\n")
