/** The benchmarks game's binary trees in Java: DEPTH [THREADS], see gclab trees. */
public final class Trees {
    private record Node(Node left, Node right) {
        static Node tree(int depth) {
            return depth == 0 ? new Node(null, null) : new Node(tree(depth - 1), tree(depth - 1));
        }

        long count() {
            return left == null ? 1 : 1 + left.count() + right.count();
        }
    }

    private static String program(int deepest) {
        StringBuilder out = new StringBuilder();
        out.append("stretch tree of depth %d\t check: %d%n".formatted(deepest + 1, Node.tree(deepest + 1).count()));
        Node longLived = Node.tree(deepest);
        for (int depth = 4; depth <= deepest; depth += 2) {
            long trees = 1L << (deepest - depth + 4);
            long check = 0;
            for (long i = 0; i < trees; i++) {
                check += Node.tree(depth).count();
            }
            out.append("%d\t trees of depth %d\t check: %d%n".formatted(trees, depth, check));
        }
        out.append("long lived tree of depth %d\t check: %d%n".formatted(deepest, longLived.count()));
        return out.toString();
    }

    public static void main(String[] arguments) throws InterruptedException {
        int deepest = Math.max(6, arguments.length > 0 ? Integer.parseInt(arguments[0]) : 10);
        String[] printed = new String[arguments.length > 1 ? Integer.parseInt(arguments[1]) : 1];
        Thread[] threads = new Thread[printed.length];
        for (int i = 0; i < threads.length; i++) {
            int own = i;
            threads[i] = new Thread(() -> printed[own] = program(deepest));
            threads[i].start();
        }
        for (Thread thread : threads) {
            thread.join();
        }
        for (String lines : printed) {
            if (!printed[0].equals(lines)) {
                throw new AssertionError("two threads counted differently");
            }
        }
        System.out.print(printed[0]);
    }
}
