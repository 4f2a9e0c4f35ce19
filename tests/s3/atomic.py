"""moto's server, in which conditional writes exclude each other as they do in S3: moto looks first and writes later.

``python tests/s3/atomic.py PORT`` serves on loopback until it is terminated.
"""

import io
import sys
import threading

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple


def one_at_a_time(application):
    """Let only one conditional write at a time into a WSGI application."""
    turn = threading.Lock()

    def called(environ, start_response):
        if "HTTP_IF_NONE_MATCH" not in environ:
            return application(environ, start_response)
        # Nobody waits for another one's connection.
        environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
        with turn:
            return list(application(environ, start_response))

    return called


if __name__ == "__main__":
    served = one_at_a_time(DomainDispatcherApplication(create_backend_app))
    run_simple("127.0.0.1", int(sys.argv[1]), served, threaded=True, request_handler=MotoRequestHandler)
