// microsoft/etcd3, whose users turn revisions into JavaScript's numbers: reads over the whole alphabet of the endpoint it
// is given, writes, then watches from behind what was read. Writes what came as JSON.
const {Etcd3} = require("etcd3");

async function token(client) {
    await client.put("a").value("before");
    await client.put("z").value("before");
    const read = await client.getAll().exec();
    const revision = Number(read.header.revision);
    await client.put("a").value("after");
    await client.put("z").value("after");
    const told = [];
    const watcher = await client
        .watch()
        .inRange({start: "a", end: "zz"})
        .startRevision(String(revision + 1))
        .create();
    await new Promise((done) => {
        const late = setTimeout(done, 10000);
        const end = () => {
            clearTimeout(late);
            done();
        };
        watcher.on("put", (row) => {
            told.push([row.key.toString(), row.value.toString()]);
            if (told.length === 2) end();
        });
        watcher.on("error", (error) => {
            told.push(["error", String(error)]);
            end();
        });
    });
    return {exact: String(revision) === read.header.revision, told: told.sort()};
}

token(new Etcd3({hosts: process.argv[2]})).then(
    (what) => {
        console.log(JSON.stringify(what));
        process.exit(0);
    },
    (error) => {
        console.error(error);
        process.exit(1);
    },
);
