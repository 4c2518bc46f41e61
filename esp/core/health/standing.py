"""Proxies that must keep their map while stray keys are mended: else live keys could be taken for strays."""

from __future__ import annotations

from collections.abc import Sequence

from esp.core.background import all_of
from esp.core.config import Config
from esp.core.health.facts import ProxyHealth
from esp.core.health.mending import MendError
from esp.core.health.proxies import Proxies, version_of


class Standing:
    """Proxies with the map of a config.

    Args:
        config: the config.
        proxies: how they are asked.
        seen: what they have told before.
    """

    def __init__(self, config: Config, proxies: Proxies, seen: Sequence[ProxyHealth]) -> None:
        self._config = config
        self._files = proxies.files
        self._epochs = {proxy.endpoint: proxy.epoch for proxy in seen}

    async def look(self) -> None:
        """Looks whether each proxy has read no config since.

        Raises:
            MendError: a proxy has, or does not tell.
        """
        told = await all_of([version_of(endpoint, self._files) for endpoint in self._epochs])
        for (endpoint, epoch), now in zip(self._epochs.items(), told, strict=True):
            if not now:
                what = "no longer tells its shard map"
            elif now.get("map") != self._config.shard_map.fingerprint:
                what = f"has the shard map {now.get('map')} meanwhile, by which other keys are stray"
            elif now.get("epoch") != epoch:
                what = "has read its config anew meanwhile"
            else:
                continue
            raise MendError(
                f"proxy {endpoint} {what}; no further key is touched, and what was done stays done: compare the maps "
                "(esp check --keys --proxy URL), then run the command again"
            )
