import java.util.concurrent.atomic.AtomicLong;

/** A Java machine as a neighbour: threads that compute, allocate and collect. */
public class Guest {
    static final AtomicLong rounds = new AtomicLong();
    static final AtomicLong wrong = new AtomicLong();
    static volatile Object kept;

    static double sum(int n) {
        double s = 0;
        for (int i = 1; i <= n; i++) s += (double) i * i;
        return s;
    }

    /** A loop that the compiler makes of vector instructions. */
    static float vectors(float[] a, float[] b) {
        for (int i = 0; i < a.length; i++) b[i] = a[i] * 2 + 1;
        return b[a.length - 1];
    }

    /** Called once by the host. */
    public static void start() {
        for (int t = 0; t < 2; t++) {
            Thread thread = new Thread(() -> {
                double wanted = sum(100_000);
                float[] a = new float[4096];
                java.util.Arrays.fill(a, 3);
                while (true) {
                    float[] b = new float[a.length];
                    boolean right = sum(100_000) == wanted && vectors(a, b) == 7;
                    for (float f : b) right &= f == 7;
                    if (!right) wrong.incrementAndGet();
                    kept = b;
                    if (rounds.incrementAndGet() % 1000 == 0) System.gc();
                }
            });
            thread.setDaemon(true);
            thread.start();
        }
    }

    /** Called by threads of the host's. */
    public static double compute() {
        return sum(10_000);
    }

    /** What the threads have done; -1 if an answer was wrong. */
    public static long rounds() {
        return wrong.get() != 0 ? -1 : rounds.get();
    }
}
