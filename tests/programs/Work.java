import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.util.concurrent.*;
import java.util.concurrent.atomic.AtomicLong;

/**
 * Threads, garbage, locks and timers in a JVM; a digest that depends on every step.
 *
 * Usage: Work GO. It does not end before GO is there.
 */
public class Work {
    static final AtomicLong steps = new AtomicLong();

    static String chain(int seed, int rounds, Path go) throws Exception {
        MessageDigest d = MessageDigest.getInstance("SHA-256");
        byte[] h = {(byte) seed};
        java.util.ArrayList<byte[]> keep = new java.util.ArrayList<>();
        for (int i = 0; i < rounds; i++) {
            while (i == rounds * 3 / 4 && !Files.exists(go)) Thread.sleep(2);
            h = d.digest(h);
            keep.add(h.clone());
            if (keep.size() > 5000) keep = new java.util.ArrayList<>();
            if (i % 1000 == 0) Thread.sleep(1);
            steps.incrementAndGet();
        }
        StringBuilder s = new StringBuilder();
        for (byte b : h) s.append(String.format("%02x", b));
        return s.toString();
    }

    public static void main(String[] a) throws Exception {
        ExecutorService pool = Executors.newFixedThreadPool(4);
        java.util.List<Future<String>> all = new java.util.ArrayList<>();
        for (int i = 0; i < 8; i++) {
            final int k = i;
            all.add(pool.submit(() -> chain(k, 300000, Path.of(a[0]))));
        }
        while (steps.get() < 200000) Thread.sleep(2);
        System.out.println("READY");
        StringBuilder s = new StringBuilder();
        for (Future<String> f : all) s.append(f.get());
        byte[] r = MessageDigest.getInstance("SHA-256").digest(s.toString().getBytes());
        StringBuilder out = new StringBuilder();
        for (byte b : r) out.append(String.format("%02x", b));
        System.out.println("RESULT " + out);
        System.out.println("OK");
        pool.shutdown();
    }
}
