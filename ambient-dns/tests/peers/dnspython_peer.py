"""Both sides of a DNS server, as dnspython has them.

nameserver       serves the zone example.org on a free port of 127.0.0.1 by UDP and TCP, and says which
client OURS DIRECT
                 asks through the server at port OURS what it asks the nameserver at port DIRECT too, and says `ok` and
                 what was asked for each thing that is as it should be
"""

import socket
import socketserver
import sys
import threading

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.query
import dns.rcode
import dns.rdatatype
import dns.resolver
import dns.tsig
import dns.tsigkeyring
import dns.update
import dns.xfr
import dns.zone

HERE = "127.0.0.1"
KEYS = dns.tsigkeyring.from_text({"key.example.org.": "c2VjcmV0IG9mIGEgdGVzdA=="})
ZONE = dns.zone.from_text(
    """
$TTL 300
@ SOA ns hostmaster 1 3600 600 86400 60
@ NS ns
ns A 192.0.2.53
www A 192.0.2.1
www AAAA 2001:db8::1
www HTTPS 1 . alpn=h2
_http._tcp SRV 0 5 80 www
text TXT "one" "two"
mail MX 10 www
alias CNAME www
"""
    + "\n".join(f'big TXT "{n:03} {"x" * 200}"' for n in range(60))
    + "\n"
    + "\n".join(f"host{n} A 198.51.100.{n % 250}" for n in range(2000)),
    origin="example.org.",
    relativize=False,
)


def answers(wire, tcp):
    """The messages that answer a query."""
    query = dns.message.from_wire(wire, keyring=KEYS)
    question = query.question[0]
    if question.rdtype == dns.rdatatype.AXFR:
        return transfer(query)
    reply = dns.message.make_response(query, our_payload=4096)
    reply.flags |= dns.flags.AA
    if query.opcode() == dns.opcode.QUERY:
        look_up(reply, question)
        # As a nameserver that knows cookies: what the client has sent comes back, and more.
        for option in query.options:
            if option.otype == dns.edns.COOKIE:
                cookie = dns.edns.CookieOption(option.client, b"of server")
                reply.use_edns(0, query.ednsflags, 4096, options=[cookie])
    most = 65535 if tcp else max(512, query.payload)
    wire = reply.to_wire(max_size=65535, want_shuffle=False)
    if len(wire) > most:
        reply = dns.message.make_response(query)
        reply.flags |= dns.flags.TC
        wire = reply.to_wire()
    return [wire]


def look_up(reply, question):
    node = ZONE.get_node(question.name)
    if node is None:
        reply.set_rcode(dns.rcode.NXDOMAIN)
        reply.authority.append(ZONE.find_rrset(ZONE.origin, "SOA"))
        return
    for rdataset in node:
        if question.rdtype in (rdataset.rdtype, dns.rdatatype.ANY) or rdataset.rdtype == dns.rdatatype.CNAME:
            rrset = ZONE.find_rrset(question.name, rdataset.rdtype)
            reply.answer.append(rrset)


def transfer(query):
    soa = ZONE.find_rrset(ZONE.origin, "SOA")
    rest = [ZONE.find_rrset(name, r.rdtype) for name, r in ZONE.iterate_rdatasets() if r.rdtype != dns.rdatatype.SOA]
    rrsets = [soa, *rest, soa]
    for first in range(0, len(rrsets), 300):
        reply = dns.message.make_response(query)
        reply.answer = rrsets[first : first + 300]
        yield reply.to_wire(max_size=65535, want_shuffle=False)


class ByUdp(socketserver.BaseRequestHandler):
    def handle(self):
        wire, answering = self.request
        for reply in answers(wire, False):
            answering.sendto(reply, self.client_address)


class ByTcp(socketserver.StreamRequestHandler):
    def handle(self):
        while len(length := self.rfile.read(2)) == 2:
            wire = self.rfile.read(int.from_bytes(length))
            for reply in answers(wire, True):
                self.wfile.write(len(reply).to_bytes(2) + reply)


def nameserver():
    socketserver.ThreadingTCPServer.allow_reuse_address = True
    while True:
        tcp = socketserver.ThreadingTCPServer((HERE, 0), ByTcp)
        try:
            udp = socketserver.ThreadingUDPServer((HERE, tcp.server_address[1]), ByUdp)
            break
        except OSError:
            tcp.server_close()
    # A datagram of the largest size, and not of socketserver's.
    udp.max_packet_size = 65535
    threading.Thread(target=tcp.serve_forever, daemon=True).start()
    threading.Thread(target=udp.serve_forever, daemon=True).start()
    print(tcp.server_address[1], flush=True)
    # Its end is the end of who has started it.
    sys.stdin.read()


def check(what, holds, seen=None):
    print("ok" if holds else f"FAILED ({seen})", what, flush=True)


def client(ours, direct):
    udp = lambda query, port: dns.query.udp(query, HERE, timeout=10, port=port)
    tcp = lambda query, port: dns.query.tcp(query, HERE, timeout=10, port=port)
    mesh(ours, udp, tcp)
    queries = [
        dns.message.make_query(f"{name}.example.org.", kind, **options)
        for name, kind in [
            ("www", "A"),
            ("www", "AAAA"),
            ("www", "HTTPS"),
            ("_http._tcp", "SRV"),
            ("text", "TXT"),
            ("mail", "MX"),
            ("alias", "A"),
            ("www", "ANY"),
            ("none", "A"),
            ("big", "TXT"),
            ("www", "TYPE65280"),
        ]
        for options in [
            {},
            {"use_edns": 0, "payload": 1232, "want_dnssec": True},
            {"use_edns": 0, "payload": 65535, "options": [dns.edns.CookieOption(b"8 bytes!", b""), dns.edns.GenericOption(65001, b"x")]},
        ]
    ]
    for query in queries:
        asked = query.question[0].to_text() + f" EDNS {query.edns} {query.payload}"
        for way, ask in [("UDP", udp), ("TCP", tcp)]:
            via, plain = (ask(query, port).to_wire(want_shuffle=False) for port in (ours, direct))
            check(f"{asked} by {way} is what the nameserver says", via == plain, via)
    big = dns.message.make_query("big.example.org.", "TXT")
    reply, fell_back = dns.query.udp_with_fallback(big, HERE, timeout=10, port=ours)
    check("a cut answer is asked for again by TCP", fell_back and len(reply.answer[0]) == 60, fell_back)
    signed(ours, udp, tcp)
    zone = dns.zone.Zone("example.org.", relativize=False)
    dns.query.inbound_xfr(HERE, zone, port=ours, timeout=30, lifetime=60)
    check("a transferred zone is whole", zone == ZONE, len(zone.nodes))


def mesh(ours, udp, tcp):
    for way, ask in [("UDP", udp), ("TCP", tcp)]:
        query = dns.message.make_query("web.shop.svc.cluster.local.", "A", use_edns=0, payload=1232)
        reply = ask(query, ours)
        check(f"an address of the mesh by {way}", [r.to_text() for r in reply.answer[0]] == ["10.96.0.7"], reply)
        check(f"it is authoritative by {way}", reply.flags & dns.flags.AA and reply.answer[0].ttl == 30 and reply.edns == 0, reply)
        reply = ask(dns.message.make_query("web.shop.svc.cluster.local.", "AAAA"), ours)
        check(f"a family that is missing by {way}", (reply.rcode(), reply.answer) == (dns.rcode.NOERROR, []), reply)
        chain = ask(dns.message.make_query("api.example.com.shop.svc.cluster.local.", "A"), ours).resolve_chaining()
        check(f"an alias by {way}", chain.canonical_name.to_text() == "api.example.com." and chain.answer[0].to_text() == "240.0.0.1", chain)
    resolver = dns.resolver.Resolver(configure=False)
    resolver.nameservers, resolver.port, resolver.ndots = [HERE], ours, 5
    resolver.search = [dns.name.from_text(d) for d in ["shop.svc.cluster.local.", "svc.cluster.local.", "cluster.local."]]
    for name, address in [("web", "10.96.0.7"), ("web.shop", "10.96.0.7"), ("api.example.com", "240.0.0.1"), ("www.example.org", "192.0.2.1")]:
        found = resolver.resolve(name, "A", search=True)
        check(f"{name} by a search list", [r.to_text() for r in found] == [address], found.response)


def signed(ours, udp, tcp):
    for way, ask in [("UDP", udp), ("TCP", tcp)]:
        query = dns.message.make_query("www.example.org.", "A")
        query.use_tsig(KEYS)
        check(f"a signed answer by {way}", ask(query, ours).had_tsig)
        update = dns.update.UpdateMessage("example.org.", keyring=KEYS)
        update.add("new", 300, "A", "192.0.2.9")
        reply = ask(update, ours)
        check(f"a signed update by {way}", (reply.rcode(), reply.had_tsig) == (dns.rcode.NOERROR, True), reply)
        notify = dns.message.make_query("example.org.", "SOA")
        notify.set_opcode(dns.opcode.NOTIFY)
        check(f"a notification by {way}", ask(notify, ours).opcode() == dns.opcode.NOTIFY)


if sys.argv[1] == "nameserver":
    nameserver()
else:
    client(int(sys.argv[2]), int(sys.argv[3]))
