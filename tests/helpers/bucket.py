"""A bucket on this machine: an emulator of Google Cloud Storage, with preconditions.

`python -m tests.helpers.bucket PORT` serves until it is killed. Of its buckets, `runs`
is everyone's, `forbidden` nobody's, and any other is not there.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound

logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
BUCKET, FORBIDDEN = "runs", "forbidden"


def settings(port: int) -> dict[str, str]:
    """Return the environment by which the clients find it."""
    place = f"http://127.0.0.1:{port}"
    return {
        "STORAGE_EMULATOR_HOST": place,  # gcsfs, google-cloud-storage
        "TENSORSTORE_GCS_HTTP_URL": place,  # orbax
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "anyone",
        # what the emulator has not: zonal and hierarchical buckets
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }


@contextmanager
def serving(port: int = 0) -> Iterator[int]:
    """Serve within the block; yield the port."""
    started = server.create_server("127.0.0.1", port, True, default_bucket=BUCKET)
    started.start()
    try:
        while (listening := started._api._httpd) is None:
            time.sleep(0.01)
        # a client that was killed, or read all it wanted, is no error
        listening.handle_error = lambda request, client_address: None
        yield listening.server_address[1]
    finally:
        started.stop()


def _checked(handler: Any) -> Any:
    """Return a handler that keeps to permissions and preconditions, as buckets do."""

    def call(request: Any, response: Any, storage: Any, *args: Any) -> None:
        bucket = request.params.get("bucket_name", BUCKET)
        if bucket == FORBIDDEN:
            return _refuse(response, HTTPStatus.FORBIDDEN, "no permission")
        wanted = request.query.get("ifGenerationMatch")
        if wanted and _generation(request, storage, bucket) != wanted[0]:
            return _refuse(response, HTTPStatus.PRECONDITION_FAILED, "conditionNotMet")
        handler(request, response, storage, *args)

    return call


def _generation(request: Any, storage: Any, bucket: str) -> str:
    """Return the generation of the object that a request writes; "0" without one."""
    names = request.query.get("name") or [request.params.get("object_id")]
    name = names[0] or request.data["meta"]["name"]
    try:
        return storage.get_file_obj(bucket, name)["generation"]
    except NotFound:
        return "0"


def _refuse(response: Any, status: HTTPStatus, message: str) -> None:
    response.status = status
    response["Content-type"] = "application/json"
    response.write_file(
        json.dumps({"error": {"code": status.value, "message": message}}),
        "application/json",
    )


for _, methods in server.HANDLERS:
    methods.update({name: _checked(one) for name, one in methods.items()})


if __name__ == "__main__":
    with serving(int(sys.argv[1])) as port:
        print(port, flush=True)
        threading.Event().wait()
