import com.google.protobuf.DescriptorProtos.FileDescriptorProto;
import com.google.protobuf.DescriptorProtos.FileDescriptorSet;
import com.google.protobuf.Descriptors.Descriptor;
import com.google.protobuf.Descriptors.FileDescriptor;
import com.google.protobuf.DynamicMessage;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.Map;

/** Reads lines "message hex" and writes each message's bytes, in hex, as protobuf-java writes what it has read. */
public class Reencode {
    public static void main(String[] arguments) throws Exception {
        Map<String, FileDescriptor> files = new HashMap<>();
        Map<String, Descriptor> messages = new HashMap<>();
        byte[] set = Files.readAllBytes(Path.of(arguments[0]));
        for (FileDescriptorProto file : FileDescriptorSet.parseFrom(set).getFileList()) { // each behind those it imports
            FileDescriptor[] imports =
                file.getDependencyList().stream().map(files::get).toArray(FileDescriptor[]::new);
            FileDescriptor built = FileDescriptor.buildFrom(file, imports);
            files.put(file.getName(), built);
            built.getMessageTypes().forEach(type -> messages.put(type.getFullName(), type));
        }
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
        for (String line; (line = lines.readLine()) != null; ) {
            String[] words = line.split(" ", -1);
            byte[] bytes = HexFormat.of().parseHex(words[1]);
            byte[] again = DynamicMessage.parseFrom(messages.get(words[0]), bytes).toByteArray();
            System.out.println(HexFormat.of().formatHex(again));
        }
    }
}
