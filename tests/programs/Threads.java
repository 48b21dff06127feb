import java.io.IOException;
import java.net.InetSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CyclicBarrier;
import java.util.concurrent.atomic.AtomicBoolean;

/**
 * 200 threads, a server on NIO selectors that they all talk to, and garbage for the collector.
 *
 * Usage: Threads GO FOLDER. Each client sends numbered messages of changing size and gets them back with every byte
 * changed by the server; it keeps a chain of checksums. After every round all meet at a barrier; once GO is there they
 * end together. The chain of each must be what a plain loop gives for as many rounds.
 */
public class Threads {
    static final int CLIENTS = 196;
    static final int PER_ROUND = 3;
    static volatile int rounds = 0;
    static final AtomicBoolean over = new AtomicBoolean();

    static void fail(String why) {
        System.out.println("FAIL: " + why);
        System.out.flush();
        Runtime.getRuntime().halt(1);
    }

    static byte[] message(int client, int n) {
        byte[] m = new byte[8 + (client * 7919 + n * 104729) % 3000];
        long x = client * 1_000_003L + n;
        for (int i = 0; i < m.length; i++) {
            x = x * 6364136223846793005L + 1442695040888963407L;
            m[i] = (byte) (x >>> 56);
        }
        return m;
    }

    static byte change(byte b) {
        return (byte) (b * 5 + 3);
    }

    static long chain(long sum, byte[] m, boolean changed) {
        for (byte b : m) sum = sum * 31 + (changed ? b : change(b));
        return sum;
    }

    /** A connection at the server: size (4 bytes), data. */
    static class Talk {
        final ByteBuffer in = ByteBuffer.allocateDirect(4096);
        final ArrayDeque<ByteBuffer> out = new ArrayDeque<>();
    }

    /** Serves the connections of its own selector. */
    static class Server extends Thread {
        final Selector selector;
        final ArrayDeque<SocketChannel> fresh = new ArrayDeque<>();

        Server(int n) throws IOException {
            super("server-" + n);
            selector = Selector.open();
            setDaemon(true);
        }

        void take(SocketChannel one) {
            synchronized (fresh) {
                fresh.add(one);
            }
            selector.wakeup();
        }

        public void run() {
            try {
                while (true) {
                    selector.select();
                    synchronized (fresh) {
                        while (!fresh.isEmpty()) fresh.poll().register(selector, SelectionKey.OP_READ, new Talk());
                    }
                    for (SelectionKey key : selector.selectedKeys()) serve(key);
                    selector.selectedKeys().clear();
                }
            } catch (Throwable e) {
                if (!over.get()) fail("server: " + e);
            }
        }

        void serve(SelectionKey key) throws IOException {
            SocketChannel channel = (SocketChannel) key.channel();
            Talk talk = (Talk) key.attachment();
            if (key.isReadable()) {
                int got = channel.read(talk.in);
                if (got < 0) {
                    if (!over.get()) fail("a client has gone");
                    channel.close();
                    return;
                }
                talk.in.flip();
                while (talk.in.remaining() >= 4 && talk.in.remaining() >= 4 + talk.in.getInt(talk.in.position())) {
                    byte[] data = new byte[talk.in.getInt()];
                    talk.in.get(data);
                    ByteBuffer answer = ByteBuffer.allocate(4 + data.length);
                    answer.putInt(data.length);
                    for (byte b : data) answer.put(change(b));
                    answer.flip();
                    talk.out.add(answer);
                }
                talk.in.compact();
            }
            while (!talk.out.isEmpty()) {
                channel.write(talk.out.peek());
                if (talk.out.peek().hasRemaining()) break;
                talk.out.poll();
            }
            key.interestOps(talk.out.isEmpty() ? SelectionKey.OP_READ : SelectionKey.OP_READ | SelectionKey.OP_WRITE);
        }
    }

    static long[] sums = new long[CLIENTS];

    static void full(SocketChannel one, ByteBuffer b) throws IOException {
        while (b.hasRemaining()) if (one.read(b) < 0) fail("the server has gone");
    }

    static void client(int me, InetSocketAddress address, CyclicBarrier barrier) throws Exception {
        SocketChannel one = SocketChannel.open(address);
        List<byte[]> keep = new ArrayList<>();
        long sum = 0;
        for (int n = 0; !over.get(); ) {
            for (int i = 0; i < PER_ROUND; i++) {
                byte[] m = message(me, n);
                ByteBuffer out = ByteBuffer.allocate(4 + m.length);
                out.putInt(m.length).put(m).flip();
                while (out.hasRemaining()) one.write(out);
                n++;
            }
            for (int i = PER_ROUND; i > 0; i--) {
                ByteBuffer head = ByteBuffer.allocate(4);
                full(one, head);
                byte[] m = new byte[head.getInt(0)];
                full(one, ByteBuffer.wrap(m));
                keep.add(m);
                byte[] want = message(me, n - i);
                if (m.length != want.length) fail("client " + me + ": answer " + (n - i) + " has another size");
                for (int k = 0; k < m.length; k++)
                    if (m[k] != change(want[k])) fail("client " + me + ": answer " + (n - i) + " is wrong at " + k);
                sum = chain(sum, m, true);
            }
            if (keep.size() > 60) keep = new ArrayList<>(keep.subList(30, keep.size()));
            barrier.await();
        }
        sums[me] = sum;
        one.close();
    }

    public static void main(String[] a) throws Exception {
        Path go = Path.of(a[0]);
        ServerSocketChannel listener = ServerSocketChannel.open();
        listener.bind(new InetSocketAddress("127.0.0.1", 0), 300);
        Server[] servers = {new Server(0), new Server(1)};
        for (Server s : servers) s.start();
        Thread acceptor = new Thread(() -> {
            try {
                for (int n = 0; ; n++) {
                    SocketChannel one = listener.accept();
                    one.configureBlocking(false);
                    servers[n % 2].take(one);
                }
            } catch (IOException e) {
                if (!over.get()) fail("acceptor: " + e);
            }
        }, "acceptor");
        acceptor.setDaemon(true);
        acceptor.start();
        CyclicBarrier barrier = new CyclicBarrier(CLIENTS, () -> {
            rounds++;
            if (rounds == 5) {
                System.out.println("READY");
                System.out.flush();
            }
            if (rounds >= 20 && Files.exists(go)) over.set(true);
        });
        InetSocketAddress address = (InetSocketAddress) listener.getLocalAddress();
        Thread[] clients = new Thread[CLIENTS];
        for (int i = 0; i < CLIENTS; i++) {
            final int me = i;
            clients[i] = new Thread(() -> {
                try {
                    client(me, address, barrier);
                } catch (Throwable e) {
                    fail("client " + me + ": " + e);
                }
            }, "client-" + i);
            clients[i].start();
        }
        for (Thread t : clients) t.join();
        for (int i = 0; i < CLIENTS; i++) {
            long sum = 0;
            for (int n = 0; n < rounds * PER_ROUND; n++) sum = chain(sum, message(i, n), false);
            if (sum != sums[i]) fail("client " + i + " has " + sums[i] + ", not " + sum);
        }
        System.out.println("TOTAL " + rounds * PER_ROUND * CLIENTS);
        System.out.println("OK");
    }
}
