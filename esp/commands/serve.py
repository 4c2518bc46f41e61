"""`esp serve`: the proxy, with etcds of its own where asked for."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from esp.commands.output import CommandError
from esp.core import config as configs
from esp.core.config import Config, ConfigError
from esp.core.local import CONFIG_NAME, LocalCluster, LocalEtcdError
from esp.core.proxy import Proxy

log = logging.getLogger("esp")

CONNECT_SECONDS = 3.0
"""How long to wait for the shards before telling which are missing."""
YOUNG_OBJECTS = 50_000
"""Objects made between two runs of the cyclic garbage collector; calls leave no cycles behind."""


def run(config: Path | None, local: int | None, data_dir: Path | None, listen: list[str]) -> None:
    """Serves until SIGTERM or SIGINT, then drains.

    Raises:
        ConfigError: the config, or an address in it, is wrong; nothing was started.
        CommandError: a port is in use, or an etcd did not start.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        if local is None:
            found = configs.load(configs.find(config, os.environ))
            _run_loop(_serve(_prepared(found, listen), None))
        else:
            assert data_dir is not None
            cluster = LocalCluster.open(data_dir, local)
            path = data_dir / CONFIG_NAME
            cluster.write_config(path, listen or ["http://127.0.0.1:2379"])
            _run_loop(_serve(_prepared(configs.load(path), listen), cluster))
    except LocalEtcdError as error:
        raise CommandError(str(error)) from None


def _prepared(config: Config, listen: list[str]) -> Config:
    """The config with the command line's listen addresses, every host name in it looked up once."""
    if listen:
        config = replace(config, listen=tuple(configs.listen_of(url) for url in listen))
    for shard in config.shards:
        for endpoint in shard.endpoints:
            try:
                socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError):
                raise ConfigError(
                    config.path,
                    _line_of(config.path, endpoint.host),
                    f'shard "{shard.name}": the host name "{endpoint.host}" is not known; correct it or use an address',
                ) from None
    return config


def _line_of(path: Path | None, text: str) -> int | None:
    if path is None:
        return None
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if text in line:
            return number
    return None


def _run_loop(main: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)


async def _serve(config: Config, cluster: LocalCluster | None) -> None:
    stop = asyncio.Event()
    _stop_on_signals(stop)
    async with AsyncExitStack() as stack:
        if cluster is not None:
            await cluster.start()
            stack.push_async_callback(cluster.stop)
        try:
            proxy = await stack.enter_async_context(Proxy(config))
        except OSError as error:
            raise CommandError(error.strerror or str(error)) from None
        missing = await _first_of(proxy.connected(CONNECT_SECONDS), stop)
        if missing:
            log.warning("not reachable yet: shard %s; serving the others", ", ".join(missing))
        urls = [f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}" for host, port in proxy.bound]
        names = ", ".join(shard.name for shard in config.shards)
        log.info(
            "ready on %s; %d shard%s: %s", ", ".join(urls), len(config.shards), "s"[: len(config.shards) > 1], names
        )
        if cluster is not None and config.path is not None:
            sys.stdout.write("\n".join(cluster.summary(config.shard_map, urls, config.path)) + "\n")
            sys.stdout.flush()
        gc.collect()
        gc.freeze()
        gc.set_threshold(YOUNG_OBJECTS, 20, 50)
        await stop.wait()
        log.info("draining")
    log.info("stopped")


async def _first_of(wait: Coroutine[Any, Any, list[str]], stop: asyncio.Event) -> list[str]:
    """What `wait` answers, or nothing when told to stop before."""
    task = asyncio.ensure_future(wait)
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait((task, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if task.done():
        return task.result()
    task.cancel()
    return []


def _stop_on_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
