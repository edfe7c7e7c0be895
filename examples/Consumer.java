import java.time.Duration;
import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.errors.WakeupException;
import org.apache.kafka.common.serialization.StringDeserializer;

/**
 * Prints recommendations and erasures as they are committed: java -cp JARS Consumer.java HOST:PORT TOPIC GROUP
 *
 * JARS are those of org.apache.kafka:kafka-clients and what it needs. docs/schemas has the schema of the values.
 */
public class Consumer {
    public static void main(String[] arguments) throws InterruptedException {
        Map<String, Object> settings = Map.of(
            "bootstrap.servers", arguments[0],
            "group.id", arguments[2],
            "isolation.level", "read_committed",
            "auto.offset.reset", "earliest",
            "enable.auto.commit", "false");
        var text = new StringDeserializer();
        var consumer = new KafkaConsumer<String, String>(settings, text, text);
        Thread main = Thread.currentThread();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {  // Ctrl-C leaves the group in order
            consumer.wakeup();
            try {
                main.join();
            } catch (InterruptedException stopped) {
                Thread.currentThread().interrupt();
            }
        }));
        try (consumer) {
            consumer.subscribe(List.of(arguments[1]));
            while (true) {
                for (ConsumerRecord<String, String> record : consumer.poll(Duration.ofSeconds(1))) {
                    String value = record.value();
                    System.out.println(record.key() + " " + (value == null ? "was erased" : value));
                }
                consumer.commitSync();  // what was printed is not printed again; after a crash some of it is
            }
        } catch (WakeupException told) {
            System.err.println("stopped");
        }
    }
}
