import java.io.BufferedReader;
import java.io.ByteArrayOutputStream;
import java.io.InputStreamReader;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.WebSocket;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.Base64;
import java.util.concurrent.CompletionStage;

/** As puppet.mjs, on the HttpClient of the JDK. */
public class Puppet implements WebSocket.Listener {
    private final StringBuilder text = new StringBuilder();
    private final ByteArrayOutputStream binary = new ByteArrayOutputStream();

    public static void main(String[] arguments) throws Exception {
        var client = HttpClient.newHttpClient();
        var input = new BufferedReader(new InputStreamReader(System.in));
        WebSocket socket = null;
        for (String line = input.readLine(); line != null; line = input.readLine()) {
            String[] wish = line.split("\t");
            switch (wish[0]) {
                case "open" -> {
                    var builder = client.newWebSocketBuilder().subprotocols(wish[2]);
                    socket = builder.buildAsync(URI.create(wish[1]), new Puppet()).join();
                }
                case "text" -> socket.sendText(new String(decode(wish[1]), StandardCharsets.UTF_8), true).join();
                case "binary" -> socket.sendBinary(ByteBuffer.wrap(decode(wish[1])), true).join();
                case "close" -> socket.sendClose(1000, "").join();
                default -> throw new IllegalArgumentException(line);
            }
        }
        System.exit(0);
    }

    private static byte[] decode(String data) {
        return Base64.getDecoder().decode(data);
    }

    private static synchronized void say(String what, String more, byte[] payload) {
        System.out.println(what + "\t" + more + (payload == null ? "" : Base64.getEncoder().encodeToString(payload)));
        System.out.flush();
    }

    @Override
    public void onOpen(WebSocket socket) {
        say("open", socket.getSubprotocol(), null);
        socket.request(1);
    }

    @Override
    public CompletionStage<?> onText(WebSocket socket, CharSequence data, boolean last) {
        text.append(data);
        if (last) {
            say("text", "", text.toString().getBytes(StandardCharsets.UTF_8));
            text.setLength(0);
        }
        socket.request(1);
        return null;
    }

    @Override
    public CompletionStage<?> onBinary(WebSocket socket, ByteBuffer data, boolean last) {
        byte[] part = new byte[data.remaining()];
        data.get(part);
        binary.writeBytes(part);
        if (last) {
            say("binary", "", binary.toByteArray());
            binary.reset();
        }
        socket.request(1);
        return null;
    }

    @Override
    public CompletionStage<?> onClose(WebSocket socket, int code, String reason) {
        say("closed", code + "\t", reason.getBytes(StandardCharsets.UTF_8));
        return null;
    }

    @Override
    public void onError(WebSocket socket, Throwable error) {
        error.printStackTrace();
    }
}
