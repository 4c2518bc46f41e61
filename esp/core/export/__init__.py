"""Keys out of shards into a file, and back: `esp export` and `esp import`.

    unchanged  whether the keys of an export have changed since
    exporting  all keys of a range at one moment, as lines
    importing  the lines of a file into shards
    rounds     the lines of a file in portions, for `importing`
    writing    the keys of a portion into one shard, as transactions
    granting   the leases of a file on all shards
    renewing   leases kept alive on one shard, whatever others do
    started    the first part of an export, to go on from there
    pages      the keys of one shard's range at a revision, some at a time
    stride     the part of a range that a page is asked for
    moment     a revision of each shard, all of one moment
    patience   questions to a shard that may be away for a while
    target     the config of an etcd that is no shard of a config
    lines      the lines of a file: how they are written and read

From the top down; each file imports only files below it.
"""

from esp.core.export.exporting import Exported, Output, export, go_on
from esp.core.export.importing import Import, Imported
from esp.core.export.lines import ExportError
from esp.core.export.pages import Ask, Pages, count, of_shard
from esp.core.export.patience import told
from esp.core.export.rounds import Source
from esp.core.export.started import Started, read_started
from esp.core.export.target import Etcd, config_of
from esp.core.export.unchanged import changes_since
from esp.core.export.writing import Existing

__all__ = [
    "Ask",
    "Etcd",
    "Existing",
    "ExportError",
    "Exported",
    "Import",
    "Imported",
    "Output",
    "Pages",
    "Source",
    "Started",
    "changes_since",
    "config_of",
    "count",
    "export",
    "go_on",
    "of_shard",
    "read_started",
    "told",
]
