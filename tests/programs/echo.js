// Worker threads, and a TCP echo between them; every byte is compared, the final answer is known.
//
// Usage: echo.js GO FOLDER. One worker is the server, two are clients with several connections each; the main thread
// counts through shared memory, timers and messages. Each client keeps a hash over all that came back.
const crypto = require('crypto');
const fs = require('fs');
const net = require('net');
const { Worker, isMainThread, parentPort, workerData } = require('worker_threads');

const SIZE = 60000;
const ENOUGH = 100;

function fail(why) {
  fs.writeSync(1, `FAIL: ${why}\n`);
  process.kill(process.pid, 'SIGKILL'); // process.exit ends only the worker it is called in
}
process.on('uncaughtException', (error) => fail(error.stack));

// The stream of a connection: any part of it can be told from its place.
function stream(seed, at, length) {
  const out = Buffer.alloc(length);
  for (let i = 0; i < length; i++) {
    const x = Math.imul(at + i + seed * 7919, 2654435761);
    out[i] = x >>> 24 ^ x >>> 11;
  }
  return out;
}

function server() {
  const one = net.createServer((socket) => {
    socket.pipe(socket);
    socket.on('error', (error) => fail(`server: ${error}`));
  });
  one.listen(0, '127.0.0.1', () => parentPort.postMessage({ port: one.address().port }));
  parentPort.on('message', () => one.close());
}

function client({ id, port, shared }) {
  const counters = new Int32Array(shared);
  let open = 0;
  for (let k = 0; k < 4; k++) {
    const seed = id * 100 + k;
    const socket = net.connect(port, '127.0.0.1');
    const hash = crypto.createHash('sha256');
    let sent = 0, got = 0, rounds = 0;
    open++;
    const send = () => {
      socket.write(stream(seed, sent, SIZE));
      sent += SIZE;
    };
    socket.on('connect', send);
    socket.on('error', (error) => fail(`client: ${error}`));
    socket.on('close', () => {
      if (got !== sent) fail(`connection ${seed} was closed after ${got} of ${sent} bytes`);
      parentPort.postMessage({ seed, rounds, digest: hash.digest('hex') });
      if (--open === 0) parentPort.close();
    });
    socket.on('data', (data) => {
      if (!data.equals(stream(seed, got, data.length))) fail(`connection ${seed} is wrong near byte ${got}`);
      hash.update(data);
      got += data.length;
      if (got !== sent) return;
      rounds++;
      Atomics.add(counters, 0, 1);
      if (Atomics.load(counters, 1) && rounds >= 5) socket.end();
      else if (rounds % 3) send();
      else setTimeout(send, 1);
    });
  }
}

function main() {
  const [go] = process.argv.slice(2);
  const shared = new SharedArrayBuffer(8); // rounds in all, "end now"
  const counters = new Int32Array(shared);
  const serving = new Worker(__filename, { workerData: { role: 'server' } });
  serving.on('error', (error) => fail(error));
  serving.once('message', ({ port }) => {
    const results = [];
    let running = 2;
    for (const id of [1, 2]) {
      const worker = new Worker(__filename, { workerData: { role: 'client', id, port, shared } });
      worker.on('message', (result) => results.push(result));
      worker.on('error', (error) => fail(error));
      worker.on('exit', () => { if (--running === 0) verify(results, counters, serving); });
    }
    let said = false;
    const timer = setInterval(() => {
      const rounds = Atomics.load(counters, 0);
      if (!said && rounds >= 20) { said = true; fs.writeSync(1, 'READY\n'); }
      if (rounds >= ENOUGH && fs.existsSync(go)) { Atomics.store(counters, 1, 1); clearInterval(timer); }
    }, 3);
  });
}

function verify(results, counters, serving) {
  let rounds = 0;
  for (const result of results) {
    rounds += result.rounds;
    const want = crypto.createHash('sha256').update(stream(result.seed, 0, result.rounds * SIZE)).digest('hex');
    if (want !== result.digest) fail(`the hash of connection ${result.seed} after ${result.rounds} rounds`);
  }
  if (results.length !== 8 || rounds !== counters[0]) fail(`${results.length} connections, ${rounds} of ${counters[0]}`);
  serving.on('exit', () => { fs.writeSync(1, `TOTAL ${rounds}\nOK\n`); });
  serving.postMessage('end');
  serving.terminate();
}

if (isMainThread) main();
else if (workerData.role === 'server') server();
else client(workerData);
