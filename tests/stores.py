"""A real S3 server on this machine, which can be told to fail."""

import io
import threading
from contextlib import contextmanager

import fsspec
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from PIL import Image
from werkzeug.serving import WSGIRequestHandler, make_server

SLOW_DOWN = b"<Error><Code>SlowDown</Code></Error>"


class Server:
    """moto's server, with a count of requests; while `failing` is above 0 it refuses."""

    def __init__(self):
        self.answer = DomainDispatcherApplication(create_backend_app)
        self.failing, self.requests, self.after = 0, [], None

    def __call__(self, environ, start_response):
        request = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.append(request)
        if self.after is not None and self.after(*request):
            self.failing, self.after = self.failing_later, None
        if self.failing:
            self.failing -= 1
            start_response("503 Slow Down", [("Content-Length", str(len(SLOW_DOWN)))])
            return [SLOW_DOWN]
        return self.answer(environ, start_response)

    def fail(self, requests, after=None):
        """Refuse so many requests, from now on, or from the first for which `after` is true."""
        if after is None:
            self.failing = requests
        else:
            self.failing_later, self.after = requests, after


class _Quiet(WSGIRequestHandler):
    def log(self, *_):
        pass


@contextmanager
def s3():
    """The server, with the environment of this process and its children set up for it."""
    application = Server()
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # of an earlier server
        store = fsspec.filesystem("s3")
        store.makedirs("lab", exist_ok=True)
        for path in store.ls("lab"):  # all servers of a process share what was put into one
            store.rm(path, recursive=True)
        yield application
        application.failing = 0
        server.shutdown()
    thread.join()
    server.server_close()


def put_pictures(url, pictures):
    """PNG files 00.png, 01.png, ... in a folder of the store; their bytes."""
    store, path = fsspec.url_to_fs(url)
    encoded = []
    for number, pixels in enumerate(pictures):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        encoded.append(file.getvalue())
        store.pipe_file(f"{path}/{number:02}.png", encoded[-1])
    return encoded
