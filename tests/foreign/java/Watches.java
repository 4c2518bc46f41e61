import io.etcd.jetcd.ByteSequence;
import io.etcd.jetcd.Client;
import io.etcd.jetcd.KV;
import io.etcd.jetcd.Watch;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;

/** As many watches as it is told, each a stream of its own on one connection, then a Put of every key; writes JSON. */
public class Watches {
    /** Keys that spread over the whole alphabet, so over every shard. */
    static ByteSequence key(int number) {
        return ByteSequence.from((char) ('a' + number % 26) + "-" + number, StandardCharsets.UTF_8);
    }

    public static void main(String[] arguments) throws Exception {
        int count = Integer.parseInt(arguments[1]);
        try (Client client = Client.builder().endpoints(arguments[0]).build()) {
            KV kv = client.getKVClient();
            ByteSequence value = ByteSequence.from("v", StandardCharsets.UTF_8);
            CountDownLatch missing = new CountDownLatch(count);
            AtomicInteger failed = new AtomicInteger();
            List<Watch.Watcher> watchers = new ArrayList<>();
            for (int i = 0; i < count; i++) {
                AtomicInteger told = new AtomicInteger();
                watchers.add(
                    client.getWatchClient().watch(
                        key(i),
                        Watch.listener(
                            answer -> {
                                if (!answer.getEvents().isEmpty() && told.getAndIncrement() == 0) {
                                    missing.countDown();
                                }
                            },
                            error -> failed.incrementAndGet())));
            }
            // jetcd does not say when a watch is there, so keys are put until their events have come.
            int puts = 0;
            for (int turn = 0; turn < 10 && missing.getCount() > 0; turn++) {
                for (int i = 0; i < count; i++) {
                    kv.put(key(i), value).get(30, TimeUnit.SECONDS);
                    puts++;
                }
                missing.await(3, TimeUnit.SECONDS);
            }
            System.out.printf(
                "{\"failed\": %d, \"told\": %d, \"puts\": %d}%n",
                failed.get(), count - missing.getCount(), puts);
            watchers.forEach(Watch.Watcher::close);
        }
        System.exit(0); // its threads would go on for a while
    }
}
