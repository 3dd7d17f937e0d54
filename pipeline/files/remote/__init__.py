"""Objects at addresses (``s3://``, ``gs://``, ``https://``), read and written through fsspec.

What a storage answers is translated: an object that is not there is a ``FileNotFoundError``, all
else a ``StorageError`` that says what and where. What may pass is tried again, with back-off.
Credentials come from the environment alone, as the storage's own tools take them, and appear in no
message, record or file.
"""

from pipeline.files.remote.copies import Copy, budget, copied, download, folder, local_copy
from pipeline.files.remote.known import current, forget, forget_listed, look_up, state_of
from pipeline.files.remote.objects import (
    can_list,
    delete,
    is_folder,
    listing,
    read,
    read_range,
    refused_folder,
    state,
    upload,
    write,
)
from pipeline.files.remote.replacing import ChangedError, replace, require_whole

__all__ = [
    "ChangedError",
    "Copy",
    "budget",
    "can_list",
    "copied",
    "current",
    "delete",
    "download",
    "folder",
    "forget",
    "forget_listed",
    "is_folder",
    "listing",
    "local_copy",
    "look_up",
    "read",
    "read_range",
    "refused_folder",
    "replace",
    "require_whole",
    "state",
    "state_of",
    "upload",
    "write",
]
