/** The benchmarks game's binary trees in Java: see gclab trees. */
public final class Trees {
    private record Node(Node left, Node right) {
        static Node tree(int depth) {
            return depth == 0 ? new Node(null, null) : new Node(tree(depth - 1), tree(depth - 1));
        }

        long count() {
            return left == null ? 1 : 1 + left.count() + right.count();
        }
    }

    public static void main(String[] arguments) {
        int deepest = Math.max(6, arguments.length > 0 ? Integer.parseInt(arguments[0]) : 10);
        System.out.printf("stretch tree of depth %d\t check: %d%n", deepest + 1, Node.tree(deepest + 1).count());
        Node longLived = Node.tree(deepest);
        for (int depth = 4; depth <= deepest; depth += 2) {
            long trees = 1L << (deepest - depth + 4);
            long check = 0;
            for (long i = 0; i < trees; i++) {
                check += Node.tree(depth).count();
            }
            System.out.printf("%d\t trees of depth %d\t check: %d%n", trees, depth, check);
        }
        System.out.printf("long lived tree of depth %d\t check: %d%n", deepest, longLived.count());
    }
}
