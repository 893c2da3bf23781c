import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonToken;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.zip.CRC32;

/** The stateful job of job.py in Java: the same 868 bytes of state and the same answer. One instance per task. */
final class Job {
    private static final String[] KINDS = {
        "product_view", "cart_add", "order", "search", "wishlist_add", "click", "share", "other"
    };
    private static final int OTHER = 7, ROWS = 64, HEAD = 36, ROW = 13;
    private static final JsonFactory JSON = new JsonFactory();

    private final CRC32 crc = new CRC32();
    private final StringBuilder text = new StringBuilder(320);
    private String user, event, item, category;
    private long timestamp;
    private double price;
    private int code, itemHash;

    /** Read all fields of a click. */
    void decode(byte[] value) {
        try (JsonParser parser = JSON.createParser(value)) {
            parser.nextToken();
            while (parser.nextToken() == JsonToken.FIELD_NAME) {
                String field = parser.currentName();
                parser.nextToken();
                switch (field) {
                    case "user_id" -> user = parser.getText();
                    case "event" -> event = parser.getText();
                    case "timestamp" -> timestamp = parser.getLongValue();
                    case "item_id" -> item = parser.getText();
                    case "category" -> category = parser.getText();
                    case "price" -> price = parser.getDoubleValue();
                    default -> parser.skipChildren();
                }
            }
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
        code = 0;
        while (code < OTHER && !KINDS[code].equals(event)) code++;
        crc.reset();
        crc.update(item.getBytes(StandardCharsets.UTF_8));
        itemHash = (int) crc.getValue();
    }

    /** Return the next state; the old one, null for a new user, is left as it is. */
    byte[] step(byte[] old) {
        byte[] state = old == null ? new byte[HEAD + ROWS * ROW] : old.clone();
        ByteBuffer bytes = ByteBuffer.wrap(state).order(ByteOrder.LITTLE_ENDIAN);
        int count = bytes.getInt(0), row = HEAD + count % ROWS * ROW, kind = 4 + code * 4;
        bytes.put(row, (byte) code).putInt(row + 1, itemHash).putLong(row + 5, timestamp);
        bytes.putInt(0, count + 1).putInt(kind, bytes.getInt(kind) + 1);
        return state;
    }

    /** Return the answer to the click that was decoded last. */
    byte[] answer(byte[] state) {
        ByteBuffer bytes = ByteBuffer.wrap(state).order(ByteOrder.LITTLE_ENDIAN);
        int count = bytes.getInt(0);
        text.setLength(0);
        text.append("{\"user_id\":\"").append(user).append("\",\"event_time\":").append(timestamp);
        text.append(",\"events\":").append(count).append(",\"rows\":").append(Math.min(count, ROWS));
        text.append(",\"last_item\":").append(itemHash & 0xffffffffL).append(",\"last_event\":\"").append(event);
        text.append("\",\"counts\":{");
        for (int kind = 0; kind < KINDS.length; kind++) {
            text.append(kind == 0 ? "\"" : ",\"").append(KINDS[kind]).append("\":").append(bytes.getInt(4 + kind * 4));
        }
        return text.append("}}").toString().getBytes(StandardCharsets.UTF_8);
    }
}
