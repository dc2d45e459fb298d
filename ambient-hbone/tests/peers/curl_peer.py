"""HTTP/1.1 through an HBONE tunnel with libcurl: `--proxy-http2` with a client certificate.

  python curl_peer.py CERTS NAME PORT URL SIZE    posts SIZE bytes to a server that echoes; prints `ok`, or what went wrong

NAME is that of a pair NAME.crt and NAME.key in the directory CERTS; `ca.crt` there is trusted. curl knows proxies by host name,
which an X.509-SVID does not bear, so that only the chain is verified.
"""
import io
import os
import sys

import pycurl

HTTPS2_PROXY = 3

certs, name, port, url, size = sys.argv[1:]
data, got = os.urandom(int(size)), io.BytesIO()
curl = pycurl.Curl()
options = {
    pycurl.URL: url,
    pycurl.PROXY: f"https://127.0.0.1:{port}",
    pycurl.PROXYTYPE: HTTPS2_PROXY,
    pycurl.HTTPPROXYTUNNEL: 1,
    pycurl.PROXY_CAINFO: f"{certs}/ca.crt",
    pycurl.PROXY_SSLCERT: f"{certs}/{name}.crt",
    pycurl.PROXY_SSLKEY: f"{certs}/{name}.key",
    pycurl.PROXY_SSL_VERIFYHOST: 0,
    pycurl.POST: 1,
    pycurl.POSTFIELDSIZE: len(data),
    pycurl.READFUNCTION: io.BytesIO(data).read,
    pycurl.WRITEFUNCTION: got.write,
    pycurl.TIMEOUT: 30,
}
for option, value in options.items():
    curl.setopt(option, value)
try:
    curl.perform()
    print("ok" if got.getvalue() == data else "not the same", flush=True)
except pycurl.error as error:
    print("failed", error.args[0], flush=True)
