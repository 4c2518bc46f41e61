// Reads lines "message hex" and writes each message's bytes, in hex, as protobufjs writes what it has read.
// Its argument is the folder of the .proto files, which import each other as esp/core/pb/NAME.
const path = require("path");
const readline = require("readline");
const protobuf = require("protobufjs");
protobuf.util.Long = require("long");
protobuf.configure();

const root = new protobuf.Root();
root.resolvePath = (origin, target) => path.join(process.argv[2], path.basename(target));
root.loadSync(["rpc.proto"], {keepCase: true});

readline.createInterface({input: process.stdin}).on("line", (line) => {
    const [name, hex] = line.split(" ");
    const type = root.lookupType(name);
    const again = type.encode(type.decode(Buffer.from(hex, "hex"))).finish();
    console.log(Buffer.from(again).toString("hex"));
});
