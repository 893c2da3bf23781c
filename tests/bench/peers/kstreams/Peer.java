import java.time.Duration;
import java.util.Map;
import java.util.Properties;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.StoreBuilder;
import org.apache.kafka.streams.state.Stores;

/**
 * The job in Kafka Streams, Processor API, one thread; RocksDB with changelog.
 * BENCH_GUARANTEE: at_least_once or exactly_once_v2. BENCH_CACHE_BYTES: 0 for a changelog record per event.
 */
public final class Peer {
    private static final class Clicks implements Processor<byte[], byte[], byte[], byte[]> {
        private final Job job = new Job();
        private KeyValueStore<byte[], byte[]> store;
        private ProcessorContext<byte[], byte[]> context;

        @Override
        public void init(ProcessorContext<byte[], byte[]> given) {
            context = given;
            store = given.getStateStore("state");
        }

        @Override
        public void process(Record<byte[], byte[]> click) {
            job.decode(click.value());
            byte[] state = job.step(store.get(click.key()));
            store.put(click.key(), state);
            context.forward(click.withValue(job.answer(state)));
        }
    }

    private static String given(String name) {
        return System.getenv("BENCH_" + name);
    }

    private static Properties settings() {
        Properties settings = new Properties();
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, given("APP"));
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, given("BROKER"));
        settings.put(StreamsConfig.STATE_DIR_CONFIG, given("STATE"));
        settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, 1);
        settings.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, 1);
        settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, given("GUARANTEE"));
        settings.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, given("CACHE_BYTES"));
        settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG), "earliest");
        settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.MAX_POLL_RECORDS_CONFIG), 5000);
        settings.put(StreamsConfig.producerPrefix(ProducerConfig.BATCH_SIZE_CONFIG), 256 << 10);
        settings.put(StreamsConfig.producerPrefix(ProducerConfig.BUFFER_MEMORY_CONFIG), 128 << 20);
        return settings;
    }

    public static void main(String[] arguments) {
        StoreBuilder<KeyValueStore<byte[], byte[]>> store = Stores.keyValueStoreBuilder(
            Stores.persistentKeyValueStore("state"), Serdes.ByteArray(), Serdes.ByteArray()
        ).withLoggingEnabled(Map.of());
        store = given("CACHE_BYTES").equals("0") ? store.withCachingDisabled() : store.withCachingEnabled();
        Topology topology = new Topology();
        topology.addSource("clicks", new ByteArrayDeserializer(), new ByteArrayDeserializer(), given("CLICKS"))
            .addProcessor("job", Clicks::new, "clicks")
            .addStateStore(store, "job")
            .addSink("answers", given("ANSWERS"), new ByteArraySerializer(), new ByteArraySerializer(), "job");
        KafkaStreams streams = new KafkaStreams(topology, settings());
        Runtime.getRuntime().addShutdownHook(new Thread(() -> streams.close(Duration.ofSeconds(3))));
        streams.start();
    }
}
