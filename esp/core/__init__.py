"""The core that all commands share: the shard map, the shard client, the services and the wire."""
