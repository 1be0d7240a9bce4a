"""S3Service: moto over real HTTP, in a thread of the test's process."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import s3fs
from moto.server import ThreadedMotoServer

KEY, SECRET = "test-key", "test-secret"


class S3Service:
    """What tests do to a service from the outside."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._call = s3fs.S3FileSystem(
            skip_instance_cache=True,
            endpoint_url=url,
            key=KEY,
            secret=SECRET,
            client_kwargs={"region_name": "us-east-1"},
        ).call_s3  # on a loop of fsspec's own

    def create_bucket(self, bucket: str, *, versioned: bool = False) -> None:
        self._call("create_bucket", Bucket=bucket)
        if versioned:
            enabled = {"Status": "Enabled"}
            self._call("put_bucket_versioning", Bucket=bucket, VersioningConfiguration=enabled)

    def put(self, bucket: str, key: str, content: bytes) -> None:
        self._call("put_object", Bucket=bucket, Key=key, Body=content)

    def delete(self, bucket: str, key: str) -> None:
        self._call("delete_object", Bucket=bucket, Key=key)

    def upload(self, directory: Path, bucket: str, prefix: str) -> None:
        for file in directory.iterdir():
            self.put(bucket, f"{prefix}/{file.name}", file.read_bytes())

    @contextmanager
    def checking_credentials(self) -> Iterator[None]:
        """Only keys that the service issued are let in: none of those that tests use."""
        self._check_after("0")
        try:
            yield
        finally:
            self._check_after("inf")

    def _check_after(self, num_calls: str) -> None:
        plain = {"Content-Type": "text/plain"}
        request = Request(f"{self.url}/moto-api/reset-auth", num_calls.encode(), plain, method="POST")
        urlopen(request).close()


@contextmanager
def s3_service() -> Iterator[S3Service]:
    """Run a service until the block ends."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield S3Service(f"http://{host}:{port}")
    finally:
        server.stop()
