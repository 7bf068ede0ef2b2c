import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;

/**
 * Full collections of a random graph in Java: see gclab mark, and peers.rs for what is read and written. System.gc() of
 * SerialGC marks with one thread, and then goes over the heap three times more to compact it: that is in the time.
 */
public final class Mark {
    /** With the header and compressed references: 32 bytes. */
    private static final class Node {
        Node left;
        Node right;
        long payload;
    }

    private static long state = 0x9e3779b97f4a7c15L;

    private static int below(int n) {
        state ^= state << 13;
        state ^= state >>> 7;
        state ^= state << 17;
        return (int) (((state >>> 32) * n) >>> 32);
    }

    public static void main(String[] arguments) throws IOException {
        int mib = arguments.length > 0 ? Integer.parseInt(arguments[0]) : 1;
        Node[] table = new Node[(int) (((long) mib << 20) / 32)];
        for (int n = 0; n < table.length; n++) {
            Node node = new Node();
            if (n > 0) {
                node.left = table[below(n)];
                node.right = table[below(n)];
            }
            table[n] = node;
        }
        System.out.println("ready " + table.length);
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
        while (lines.readLine() != null) {
            long start = System.nanoTime();
            System.gc();
            System.out.println(System.nanoTime() - start);
        }
        if (table[table.length - 1] == null) {
            throw new AssertionError("the graph is needed until here");
        }
    }
}
