"""HBONE on Python's `h2`, which is an HTTP/2 of its own making.

  python h2_peer.py server CERTS NAME...                       a server for each certificate; prints `listening NAME PORT`
  python h2_peer.py client CERTS NAME PORT AUTHORITY SIZE N    N streams that echo SIZE bytes; prints `ok`, or what went wrong

NAME is that of a pair NAME.crt and NAME.key in the directory CERTS, or `none`; `ca.crt` there is trusted.
"""
import asyncio
import os
import ssl
import struct
import sys

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    RemoteSettingsChanged,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes

CONNECT_ERROR = 10
WINDOW = 1 << 20


def say(*words):
    print(*words, flush=True)


def tls(role, certs, name):
    context = ssl.SSLContext(role)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(f"{certs}/ca.crt")
    if name != "none":
        context.load_cert_chain(f"{certs}/{name}.crt", f"{certs}/{name}.key")
    context.set_alpn_protocols(["h2"])
    return context


class Tunnel:
    """A connection; what comes for a stream goes into a queue: bytes, b"" for the end, None for a reset."""

    def __init__(self, reader, writer, is_client):
        self.reader, self.writer = reader, writer
        self.h2 = H2Connection(H2Configuration(client_side=is_client, header_encoding="utf-8"))
        self.arrived, self.answers, self.room = {}, {}, asyncio.Condition()

    async def flush(self):
        self.writer.write(self.h2.data_to_send())
        await self.writer.drain()

    async def start(self):
        self.h2.initiate_connection()
        self.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: WINDOW})
        self.h2.increment_flow_control_window(1 << 30)
        await self.flush()

    async def drive(self, on_request=None):
        """Until the connection ends."""
        try:
            while data := await self.reader.read(1 << 18):
                for event in self.h2.receive_data(data):
                    await self.handle(event, on_request)
                await self.flush()
        except (OSError, ProtocolError) as error:
            say("session", type(error).__name__)
        for queue in [*self.arrived.values(), *self.answers.values()]:
            queue.put_nowait(None)
        async with self.room:
            self.room.notify_all()

    async def handle(self, event, on_request):
        stream = getattr(event, "stream_id", None)
        if isinstance(event, RequestReceived):
            self.arrived[stream] = asyncio.Queue()
            asyncio.create_task(on_request(self, stream, dict(event.headers)))
        elif isinstance(event, ResponseReceived):
            self.answers[stream].put_nowait(dict(event.headers)[":status"])
        elif isinstance(event, DataReceived):
            self.arrived[stream].put_nowait((event.data, event.flow_controlled_length))
        elif isinstance(event, StreamEnded):
            self.arrived[stream].put_nowait(b"")
        elif isinstance(event, StreamReset):
            say("reset", event.error_code)
            self.arrived[stream].put_nowait(None)
        elif isinstance(event, ConnectionTerminated):
            say("goaway", event.error_code)
        if isinstance(event, (WindowUpdated, RemoteSettingsChanged, StreamReset)):
            async with self.room:
                self.room.notify_all()

    async def send(self, stream, data):
        while data:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
            if room <= 0:
                async with self.room:
                    await self.room.wait()
                continue
            self.h2.send_data(stream, data[:room])
            data = data[room:]
            await self.flush()

    async def end(self, stream):
        self.h2.end_stream(stream)
        await self.flush()

    async def receive(self, stream):
        """Bytes, b"" at the end; None after a reset."""
        got = await self.arrived[stream].get()
        if not got:
            return got
        data, credit = got
        self.h2.acknowledge_received_data(credit, stream)
        await self.flush()
        return data


async def serve(tunnel, stream, headers):
    host, _, port = headers[":authority"].rpartition(":")

    async def answer(status, end):
        tunnel.h2.send_headers(stream, [(":status", status)], end_stream=end)
        await tunnel.flush()

    if headers[":method"] != "CONNECT":
        return await answer("400", True)
    if host == "refuse.test":
        return await answer(port, True)
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
    except OSError:
        return await answer("503", True)
    await answer("200", False)
    if host == "goaway.test":
        # `h2` itself would take the whole connection for closed: type 7, last stream, NO_ERROR.
        tunnel.writer.write(struct.pack(">IBIII", 8 << 8 | 7, 0, 0, stream, 0))

    async def forth():
        while (data := await tunnel.receive(stream)) is not None:
            if data == b"":
                return writer.write_eof()
            writer.write(data)
            await writer.drain()
        writer.transport.abort()

    async def back():
        try:
            while data := await reader.read(1 << 16):
                await tunnel.send(stream, data)
            await tunnel.end(stream)
        except ProtocolError:
            pass
        except OSError:
            tunnel.h2.reset_stream(stream, CONNECT_ERROR)
            await tunnel.flush()

    await asyncio.gather(forth(), back(), return_exceptions=True)
    writer.close()


async def server(certs, names):
    async def accept(reader, writer):
        tunnel = Tunnel(reader, writer, False)
        await tunnel.start()
        await tunnel.drive(serve)

    listeners = []
    for name in names:
        context = tls(ssl.PROTOCOL_TLS_SERVER, certs, name)
        listener = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
        listeners.append(listener)
        say("listening", name, listener.sockets[0].getsockname()[1])
    await asyncio.gather(*(listener.serve_forever() for listener in listeners))


async def echo(tunnel, authority, data):
    stream = tunnel.h2.get_next_available_stream_id()
    tunnel.arrived[stream], tunnel.answers[stream] = asyncio.Queue(), asyncio.Queue()
    tunnel.h2.send_headers(stream, [(":method", "CONNECT"), (":authority", authority), ("baggage", "service.name=h2")])
    await tunnel.flush()
    status = await tunnel.answers[stream].get()
    if status != "200":
        return say("status", status)

    async def forth():
        await tunnel.send(stream, data)
        await tunnel.end(stream)

    sending, got = asyncio.create_task(forth()), b""
    while more := await tunnel.receive(stream):
        got += more
    await sending
    say("ok" if more == b"" and got == data else "not the same")


async def client(certs, name, port, authority, size, count):
    try:
        context = tls(ssl.PROTOCOL_TLS_CLIENT, certs, name)
        tunnel = Tunnel(*await asyncio.open_connection("127.0.0.1", int(port), ssl=context), True)
        await tunnel.start()
        driving = asyncio.create_task(tunnel.drive())
        data = os.urandom(int(size))
        await asyncio.gather(*(echo(tunnel, authority, data) for _ in range(int(count))))
        driving.cancel()
    except (OSError, ProtocolError) as error:
        say("session", type(error).__name__)


role, arguments = sys.argv[1], sys.argv[2:]
asyncio.run(server(arguments[0], arguments[1:]) if role == "server" else client(*arguments))
