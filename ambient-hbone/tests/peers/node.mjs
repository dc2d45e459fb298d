// HBONE on Node's `http2`.
//   node node.mjs server CERTS NAME...                       a server for each certificate; prints `listening NAME PORT`
//   node node.mjs client CERTS NAME PORT AUTHORITY SIZE N    N streams that echo SIZE bytes; prints `ok`, or what went wrong
// NAME is that of a pair NAME.crt and NAME.key in the directory CERTS, or `none`; `ca.crt` there is trusted.
import crypto from 'node:crypto';
import fs from 'node:fs';
import http2 from 'node:http2';
import net from 'node:net';

const [role, certs, ...rest] = process.argv.slice(2);
const read = (name) => fs.readFileSync(`${certs}/${name}`);
const tls = (name) => ({
  ca: read('ca.crt'),
  minVersion: 'TLSv1.3',
  ALPNProtocols: ['h2'],
  ...(name === 'none' ? {} : { cert: read(`${name}.crt`), key: read(`${name}.key`) }),
});

function server(name) {
  const options = { ...tls(name), requestCert: true, rejectUnauthorized: true, settings: { maxConcurrentStreams: 100 } };
  const listener = http2.createSecureServer(options);
  listener.on('sessionError', (error) => console.log('session', error.code));
  listener.on('stream', (stream, headers) => {
    stream.on('error', (error) => console.log('stream', error.code));
    const [host, port] = headers[':authority'].split(':');
    if (headers[':method'] !== 'CONNECT') return stream.respond({ ':status': 400 }, { endStream: true });
    if (host === 'refuse.test') return stream.respond({ ':status': Number(port) }, { endStream: true });
    const socket = net.connect({ host: '127.0.0.1', port: Number(port), allowHalfOpen: true });
    socket.once('connect', () => {
      stream.respond({ ':status': 200 });
      stream.pipe(socket).pipe(stream);
      if (host === 'goaway.test') stream.session.close();
    });
    socket.on('error', () => {
      // Not `close`, which ends the stream in good order before it resets it.
      if (stream.headersSent) stream.destroy(new Error('the application failed'));
      else stream.respond({ ':status': 503 }, { endStream: true });
    });
    stream.on('close', () => socket.destroy());
  });
  listener.listen(0, '127.0.0.1', () => console.log('listening', name, listener.address().port));
}

function client(name, port, authority, size, count) {
  const session = http2.connect(`https://127.0.0.1:${port}`, { ...tls(name), checkServerIdentity: () => undefined });
  session.on('error', (error) => console.log('session', error.code));
  session.on('goaway', (code) => console.log('goaway', code));
  const data = crypto.randomBytes(size);
  let open = count;
  for (let i = 0; i < count; i++) {
    const stream = session.request({ ':method': 'CONNECT', ':authority': authority, baggage: 'service.name=node' }, { endStream: false });
    const got = [];
    let status;
    stream.on('response', (headers) => {
      status = headers[':status'];
      if (status === 200) stream.end(data);
      else stream.close();
    });
    stream.on('data', (bytes) => got.push(bytes));
    stream.on('error', (error) => console.log('stream', error.code));
    stream.on('close', () => {
      if (status === 200 && Buffer.concat(got).equals(data)) console.log('ok');
      else console.log('status', status);
      if (--open === 0) session.close();
    });
  }
}

if (role === 'server') rest.forEach(server);
else client(rest[0], rest[1], rest[2], Number(rest[3]), Number(rest[4]));
