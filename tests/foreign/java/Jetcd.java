import io.etcd.jetcd.ByteSequence;
import io.etcd.jetcd.Client;
import io.etcd.jetcd.KV;
import io.etcd.jetcd.kv.GetResponse;
import io.etcd.jetcd.options.DeleteOption;
import io.etcd.jetcd.options.GetOption;
import java.nio.charset.StandardCharsets;
import java.util.concurrent.TimeUnit;

/** Puts keys of its arguments behind the first, which is an endpoint, lists all and counts them; writes what it got. */
public class Jetcd {
    static ByteSequence bytes(String text) {
        return ByteSequence.from(text, StandardCharsets.UTF_8);
    }

    public static void main(String[] arguments) throws Exception {
        try (Client client = Client.builder().endpoints(arguments[0]).build()) {
            KV kv = client.getKVClient();
            for (int i = 1; i < arguments.length; i++) {
                kv.put(bytes(arguments[i]), bytes("value of " + arguments[i])).get(30, TimeUnit.SECONDS);
            }
            ByteSequence all = bytes("\0");
            GetResponse list =
                kv.get(all, GetOption.builder().withRange(all).build()).get(30, TimeUnit.SECONDS);
            System.out.println("count " + list.getCount() + " more " + list.isMore());
            list.getKvs().forEach(row -> System.out.println(row.getKey() + " " + row.getValue()));
            GetOption atToken =
                GetOption.builder().withRange(all).withRevision(list.getHeader().getRevision()).build();
            System.out.println("again " + kv.get(all, atToken).get(30, TimeUnit.SECONDS).getCount());
            GetOption count = GetOption.builder().withRange(all).withCountOnly(true).build();
            System.out.println("counted " + kv.get(all, count).get(30, TimeUnit.SECONDS).getCount());
            DeleteOption everything = DeleteOption.builder().withRange(all).build();
            System.out.println("deleted " + kv.delete(all, everything).get(30, TimeUnit.SECONDS).getDeleted());
        }
    }
}
