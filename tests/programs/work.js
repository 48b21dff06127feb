// Timers, promises, worker threads and garbage; a digest that depends on every step.
const crypto = require('crypto');
const { Worker, isMainThread, parentPort, workerData } = require('worker_threads');
const sha = (x) => crypto.createHash('sha256').update(x).digest();
if (!isMainThread) {
  let h = Buffer.from([workerData]);
  for (let i = 0; i < 300000; i++) h = sha(h);
  parentPort.postMessage(h.toString('hex'));
} else {
  const workers = [1, 2].map((k) => new Promise((done) => new Worker(__filename, { workerData: k }).on('message', done)));
  let h = Buffer.from('main');
  let n = 0;
  const step = () => {
    for (let i = 0; i < 1000; i++) h = sha(h);
    n++;
    if (n === 20) console.log('READY');
    if (n < 200) setTimeout(step, 1);
    else Promise.all(workers).then((all) => {
      console.log('RESULT ' + sha(h.toString('hex') + all.join('')).toString('hex'));
      console.log('OK');
    });
  };
  step();
}
