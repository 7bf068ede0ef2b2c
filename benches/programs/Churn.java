import java.lang.invoke.MethodHandles;
import java.lang.invoke.VarHandle;
import java.nio.ByteOrder;

/** A cache with replacement in Java: MIB ROUNDS, see gclab churn. */
public final class Churn {
    private record Entry(byte[] value, long key) {}

    private static final VarHandle WORD =
            MethodHandles.byteArrayViewVarHandle(long[].class, ByteOrder.LITTLE_ENDIAN);
    private static final byte[] PATTERN = new byte[4096];

    private static long state = 0x9e3779b97f4a7c15L;

    private static int below(int n) {
        state ^= state << 13;
        state ^= state >>> 7;
        state ^= state << 17;
        return (int) (((state >>> 32) * n) >>> 32);
    }

    private static Entry put(long key) {
        int base = 16 << below(8);
        byte[] value = new byte[base + below(base + 1)];
        System.arraycopy(PATTERN, 0, value, 0, value.length);
        WORD.set(value, 0, key);
        return new Entry(value, key);
    }

    private static long look(Entry entry) {
        byte[] value = entry.value;
        long key = (long) WORD.get(value, 0);
        byte last = value[value.length - 1];
        if (key != entry.key || last != PATTERN[value.length - 1]) {
            throw new AssertionError("wrong answer: a value is not what was put into the cache");
        }
        return key + value.length + (last & 0xff);
    }

    public static void main(String[] arguments) {
        long mib = arguments.length > 0 ? Long.parseLong(arguments[0]) : 1;
        long rounds = arguments.length > 1 ? Long.parseLong(arguments[1]) : 1;
        int entries = (int) ((mib << 20) / 765);
        long sum = 0;
        for (int i = 0; i < PATTERN.length; i++) {
            PATTERN[i] = (byte) (i * 31 + 7);
        }
        Entry[] table = new Entry[entries];
        for (int slot = 0; slot < entries; slot++) {
            table[slot] = put(slot);
        }
        for (long turn = 0; turn < rounds * entries; turn++) {
            int slot = below(entries);
            sum += look(table[slot]);
            table[slot] = put(entries + turn);
            sum += look(table[below(entries)]);
        }
        System.out.printf(
                "%d entries, %d replacements, sum %s%n", entries, rounds * entries, Long.toUnsignedString(sum));
    }
}
