"""A node agent that speaks ZDS as Istio's istio-cni does, with nothing but Python's standard library.

    agent.py SOCKET

Each line on standard input is a command, and is answered by a line on standard output once it is done:

    accept                        a proxy has connected and has greeted
    add UID NAMESPACE NAME ACCOUNT PATH...    with a descriptor of each path
    keep UID | del UID | snapshot | raw HEX
    close                         the connection is closed

What asks something of the proxy is answered by its word: "ok", "error: TEXT", or "closed".
"""

import array
import os
import socket
import sys


def varint(number):
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def field(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def text(number, content):
    return field(number, content.encode()) if content else b""


def read_varint(data, at):
    number = shift = 0
    while True:
        number |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if data[at - 1] < 0x80:
            return number, at


def fields(data):
    at = 0
    while at < len(data):
        key, at = read_varint(data, at)
        assert key & 7 == 2, f"wire type {key & 7} in {data!r}"
        length, at = read_varint(data, at)
        yield key >> 3, data[at : at + length]
        at += length


def answer(connection):
    """Waits for a WorkloadResponse, five seconds as the original does."""
    connection.settimeout(5)
    try:
        packet = connection.recv(1024)
    except ConnectionError:
        return "closed"
    if not packet:
        return "closed"
    ((number, ack),) = fields(packet)
    assert number == 1, packet
    error = dict(fields(ack)).get(1, b"").decode()
    return f"error: {error}" if error else "ok"


def ask(connection, packet, paths=()):
    opened = [os.open(path, os.O_RDONLY) for path in paths]
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", opened))] if opened else []
    try:
        connection.sendmsg([packet], rights)
    except ConnectionError:
        return "closed"
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return answer(connection)


def main():
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(sys.argv[1])
    listener.listen(4)
    listener.settimeout(20)
    print("listening", flush=True)
    connection = None
    for line in sys.stdin:
        command, *words = line.split()
        if command == "accept":
            connection, _ = listener.accept()
            connection.settimeout(5)
            hello = connection.recv(1024)
            said = "ok" if hello == b"\x08\x01" else f"not a greeting: {hello!r}"
        elif command == "add":
            uid, namespace, name, account, *paths = words
            info = text(1, name) + text(2, namespace) + text(3, account)
            said = ask(connection, field(1, text(1, uid) + field(2, info)), paths)
        elif command == "keep":
            said = ask(connection, field(5, text(1, words[0])))
        elif command == "del":
            said = ask(connection, field(2, text(2, words[0])))
        elif command == "snapshot":
            said = ask(connection, field(3, b""))
        elif command == "raw":
            said = ask(connection, bytes.fromhex(words[0]))
        elif command == "next":
            said = answer(connection)
        elif command == "close":
            connection.close()
            said = "ok"
        else:
            said = f"no such command: {command}"
        print(said, flush=True)


main()
