"""What identifies the samples of a split: a digest of its index, which has the digest of every shard."""

from __future__ import annotations

import hashlib
import json

import numpy as np

from cdt.data.format.index import Index


def digest_of(index: Index) -> str:
    """Equal for the same samples in the same order, independent of the location and names of the shards.

    It covers what is read from where (the shards' digests, offsets and sizes), classes, attributes, and how images are
    read. The shards themselves are not opened.
    """
    shards = [[shard.count, shard.bytes, shard.sha256] for shard in index.shards]
    kinds = sorted(
        {index.extensions[code] for code in np.unique(index.ext).tolist()}
    )  # the others occur in other splits only
    facts = [list(index.shape), index.dtype, index.order, index.resize, index.class_names, kinds, shards]
    columns = {name: getattr(index, name) for name in ("shard", "offset", "size", "classes", "crc")}
    place = {name: code for code, name in enumerate(kinds)}
    columns["ext"] = np.array([place.get(name, -1) for name in index.extensions], np.int32)[index.ext]
    columns |= {f"attribute {name}": index.attributes[name] for name in sorted(index.attributes)}
    hasher = hashlib.sha256(json.dumps(facts).encode())
    for name, values in columns.items():
        hasher.update(f"\0{name} {values.dtype.str} {len(values)}\0".encode())
        hasher.update(np.ascontiguousarray(values).data)
    return hasher.hexdigest()
