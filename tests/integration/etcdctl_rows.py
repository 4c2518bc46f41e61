"""What a person does with etcdctl, as scripts; tests/integration/test_etcdctl_matrix.py runs them.

Each line of a script is one command. Through esp over one shard it must do as with etcd itself. Over several
shards, too, unless the line says what then comes instead:

    COMMAND                  the same, but for revisions
    COMMAND => TEXT          refused: the exit code is not 0, and the error has this text ("..." is any text between)
    COMMAND =~ PATTERN       esp's own answer: the exit code is 0, and a line of the output matches

Before the command may stand:

    3.5:                     only with an etcdctl of this version or a newer one
    [3]                      the command runs until it has written three lines, and is then interrupted
    [3 sorted]               the same; the lines may come in another order over several shards
    ! TEXT |                 what the command reads from its standard input, with \\n for a new line

And in it $REV, $MOD, $LEASE, $ID stand for the last revision of a header, mod_revision, id of a lease, and member id of
the output so far; $REV+1 is the revision after it. $DIR is an empty folder.

Every script begins with these keys, and no lease: `a`, `b` in the first shard, `j` in the second, `z` in the third.
"""

from __future__ import annotations

from typing import Final

ROWS: Final[dict[str, str]] = {
    "put": """
        put a new
        put a
        ! from stdin| put a
        get a
        put a newer --prev-kv
        put a newest -w json
        put a newest -w fields
        put a newest -w protobuf
        put a -w table
        put a --ignore-value
        put a given --ignore-value
        put nothing --ignore-value
        put a x --lease=1234
        put a x --ignore-lease
        put nothing x --ignore-lease
        put "" x
        put -- -dash x
        get -- -dash
        --hex get a
    """,
    "get": """
        get a
        get nothing
        get
        get ""
        get a j
        get a zz
        get j a
        get "" --from-key
        get "" --prefix
        get b --from-key --keys-only
        get "" --from-key --print-value-only
        get "" --from-key --limit=3
        get "" --from-key --limit=3 --keys-only
        get "" --from-key --consistency=s
        get "" --from-key --consistency=l
        get "" --from-key --consistency=x
        get "" --prefix --from-key
        get a --prefix -w json
        get "" --from-key -w json
        get "" --from-key -w fields
        get "" --from-key -w protobuf
        get "" --from-key -w table
        get "" --from-key -w nothing
        --hex get "" --from-key
        3.5: get "" --from-key --count-only
        3.5: get "" --from-key --count-only -w fields
        3.5: get "" --from-key --count-only -w json
        get "" --from-key --keys-only -w json
    """,
    "get sorted": """
        put z 0
        put a 5
        put a 5
        get "" --from-key --order=DESCEND
        get "" --from-key --order=ASCEND --sort-by=KEY
        get "" --from-key --sort-by=VALUE
        get "" --from-key --order=DESCEND --sort-by=VALUE
        get "" --from-key --order=DESCEND --sort-by=VALUE --limit=2
        get "" --from-key --order=ASCEND --sort-by=VERSION
        get "" --from-key --order=DESCEND --sort-by=VERSION --limit=1 --keys-only
        get "" --from-key --order=ASCEND --sort-by=CREATE => esp: a Range sorted by revision spans the shards s0, s1, s2
        get "" --from-key --order=DESCEND --sort-by=MODIFY => esp: a Range sorted by revision ... sort by key
        get a c --order=DESCEND --sort-by=MODIFY
        get a c --sort-by=CREATE --limit=1
        get "" --from-key --order=UP
        get "" --from-key --sort-by=COLOUR
    """,
    "get at a revision": """
        get a -w json
        put a new
        get a --rev=$REV
        get a c --rev=$REV
        get a --rev=99999999999
        get "" --from-key -w json
        put a newest
        put z newest
        get "" --from-key --rev=$REV
        get "" --from-key --rev=$REV --limit=2
        get z --rev=$REV
        get "" --from-key
        get j -w json
        get "" --from-key --rev=$REV => esp: a Range at a revision spans the shards s0, s1, s2 (boundary
        3.7: get "" --from-key --min-mod-rev=1 => esp: a Range filtered by revision spans the shards s0, s1, s2
        3.7: get "" --from-key --max-create-rev=1 => esp: a Range filtered by revision ... read without the filter
        3.7: get j --min-mod-rev=$MOD
        3.7: get j --max-mod-rev=1
    """,
    "del": """
        put b1 x
        del nothing
        del a
        del b --prefix --prev-kv
        put a 1
        put b 2
        del a zz --prev-kv
        put a 1
        put j 1
        put z 1
        del j --from-key
        put z 1
        put j 2
        del "" --prefix
        get "" --from-key
        put a 1
        put z 1
        del a -w json
        del "" --from-key -w fields
        del "" --from-key -w protobuf
        del "" --from-key -w table
        del a --prefix --from-key
        del
        put a 1
        put z 1
        3.7: del a --range
        3.7: del a zz --range --prev-kv
    """,
    "txn": """
        ! value("j") = "3"\\n\\nput j 20\\nget k\\n\\nget j\\n\\n| txn
        ! value("j") = "3"\\n\\nput j 20\\nget k\\n\\nget j\\n\\n| txn
        ! mod("j") > "1"\\nversion("j") = "2"\\n\\ndel j\\n\\n\\n| txn -w json
        ! create("j") = "0"\\n\\nput j 1\\n\\nget j\\n\\n| txn -w fields
        ! lease("j") = "0"\\n\\nget j\\n\\n\\n| txn
        ! \\nget a\\nget j\\nget z\\n\\n\\n| txn
        ! \\nget "" --from-key\\n\\n\\n| txn
        ! \\nget "" --from-key\\n\\n\\n| txn -w json
        ! value("j") = "3"| txn
        ! nonsense\\n| txn
        ! \\nput a 1\\nput a 2\\n\\n\\n| txn
        ! \\nput a 1\\nput z 3\\n\\n\\n| txn => esp: a transaction spans the shards s0, s2 (boundary
        ! value("a") = "1"\\n\\nput z 3\\n\\n\\n| txn => esp: a transaction spans ... keep what a transaction touches
        ! \\ndel "" --from-key\\n\\n\\n| txn => esp: a transaction spans the shards s0, s1, s2
    """,
    "compaction": """
        put a 1
        put a 2
        get "" --from-key -w json
        put z 5
        compaction $REV
        get "" --from-key
        get a --rev=2
        compaction $REV
        get "" --from-key -w json
        compaction $REV --physical
        compaction
        compaction x
        compaction 99999999999 => esp: a compaction spans the shards s0, s1, s2
        compaction 2 => esp: a compaction spans ... compact at the revision of an answer over all shards
    """,
    "watch": """
        get "" --from-key -w json
        put a x
        put z y
        del j
        [9 sorted] watch "" --prefix --rev=$REV+1
        [3] watch z --rev=$REV+1
        [9 sorted] watch a zz --rev=$REV+1
        [5] watch a --prev-kv --rev=$REV+1
        [4] watch a b --rev=$REV+1 -- echo seen
        [1] watch a --rev=$REV+1 -w json
        [1] watch a --rev=$REV+1 --progress-notify -w json
        ! watch a --rev=$REV+1\\n| [3] watch -i
        ! watch z\\nprogress\\n| [1] watch -i
        watch
        watch a --prefix --from-key
    """,
    "watch of compacted history": """
        put a 1
        put a 2
        put a 3
        get "" --from-key -w json
        compaction $REV
        watch a --rev=2
        watch "" --prefix --rev=2
    """,
    "lease": """
        lease grant 1000
        put a 1 --lease=$LEASE
        put j 1 --lease=$LEASE
        put z 1 --lease=$LEASE
        put a 2 --ignore-lease
        get a -w json
        lease timetolive $LEASE
        lease timetolive $LEASE --keys
        lease timetolive $LEASE --keys -w json
        lease timetolive $LEASE -w fields
        lease list
        lease list -w json
        lease keep-alive $LEASE --once
        lease keep-alive $LEASE --once -w json
        [1] lease keep-alive $LEASE
        lease revoke $LEASE
        get "" --from-key
        lease revoke $LEASE
        lease timetolive $LEASE
        lease timetolive $LEASE -w json
        lease keep-alive $LEASE --once
        lease keep-alive $LEASE
        lease grant 1000 -w json
        lease grant 1000 -w fields
        lease grant 0
        lease grant x
        lease grant 9000000001
        lease grant
        lease revoke xyz
        lease list -w table
    """,
    "lock and elect": """
        lock a echo held
        lock z echo held
        lock j -- sh -c "exit 3"
        lock z sh -c "echo $ETCD_LOCK_KEY"
        lock i echo held => esp: a transaction spans the shards s0, s1 (boundary "i/m")
        [1] lock b
        [1] lock z --ttl=5
        [2] elect a me
        [2] elect z me
        elect
        elect a
        lock
        get "" --from-key
    """,
    "alarm": """
        alarm list
        alarm list -w json
        alarm disarm
        alarm disarm -w json
        alarm list -w table
    """,
    "endpoint": """
        endpoint health
        endpoint health -w json
        endpoint health -w table
        endpoint health --cluster
        endpoint status =~ 127.0.0.1:\\d+, [0-9a-f]+, 3.\\d+.\\d+.*, true, false, .*
        endpoint status -w table
        endpoint status -w json
        endpoint status -w fields
        endpoint status --cluster -w table
        endpoint hashkv => esp: HashKV concerns one etcd cluster ... endpoint hashkv (shard s2)
        endpoint hashkv -w json => esp: HashKV concerns one etcd cluster
        endpoint hashkv --rev=1 => esp: HashKV concerns one etcd cluster
    """,
    "member": """
        member list =~ [0-9a-f]+, started, esp, , http://127.0.0.1:\\d+, false
        member list -w table =~ [│|] [0-9a-f ]+ [│|] started [│|] +esp [│|] +[│|] http://127.* false [│|]
        member list -w json =~ .*"members":\\[{"ID":\\d+,"name":"esp","clientURLs":\\["http://127.0.0.1:\\d+"\\]}\\].*
        member list -w fields =~ "Name" : "esp"
        --hex member list -w json =~ .*"name":"esp".*
        3.7: member list --consistency=s =~ .*, started, esp, .*
        member add one --learner --peer-urls=http://127.0.0.1:1 => esp: MemberAdd concerns one etcd cluster
        member add one
        member add two --peer-urls=nonsense
        member add two --peer-urls=http://127.0.0.1:1 --learner => esp: MemberAdd concerns one etcd cluster
        member list =~ .*, started, esp, .*
        member update $ID --peer-urls=http://127.0.0.1:2 => esp: MemberUpdate concerns one etcd cluster ... update ID
        member promote $ID => esp: MemberPromote concerns one etcd cluster ... member promote ID (shard s1)
        member remove $ID => esp: MemberRemove concerns one etcd cluster ... member remove ID (shard s1)
        member remove 1234 => esp: MemberRemove concerns one etcd cluster
        member update 1234 --peer-urls=http://127.0.0.1:1 => esp: MemberUpdate concerns one etcd cluster
        member promote 1234 => esp: MemberPromote concerns one etcd cluster
        member remove
    """,
    "maintenance": """
        defrag => esp: Defragment concerns one etcd cluster ... or write defragment: sequential in esp's config
        defrag --cluster => esp: Defragment concerns one etcd cluster
        snapshot save $DIR/db => esp: Snapshot concerns one etcd cluster ... snapshot save FILE (shard s2)
        move-leader 1234 => esp: MoveLeader concerns one etcd cluster ... move-leader ID (shard s2)
        3.7: downgrade validate 3.6 => esp: Downgrade concerns one etcd cluster ... downgrade ACTION VERSION (shard s0)
        3.7: downgrade validate 3.1 => esp: Downgrade concerns one etcd cluster
        3.7: downgrade validate x => esp: Downgrade concerns one etcd cluster
        3.7: downgrade cancel => esp: Downgrade concerns one etcd cluster
        3.7: downgrade enable 3.9 => esp: Downgrade concerns one etcd cluster
        version
    """,
    "stream": """
        3.7: get a --stream
        3.7: get "" --from-key --stream
        3.7: get "" --from-key --stream --limit=2
        3.7: get "" --from-key --stream --keys-only -w json
        3.7: get "" --from-key --stream -w fields
        3.7: get "" --prefix --stream --order=DESCEND => code = Unimplemented
        3.7: get a --stream --rev=99999999999
    """,
    "users and roles": """
        user add root:pw
        user add root:pw
        user add ann --new-user-password=x
        user add bob --no-password
        ! pw\\n| user add eve --interactive=false
        user add ""
        user list
        user list -w json
        user get ann
        user get nobody
        ! new\\n| user passwd ann --interactive=false
        ! new\\n| user passwd nobody --interactive=false
        role add root
        role add reader
        role add reader
        role grant-permission reader read "" --from-key
        role grant-permission reader readwrite a zz
        role grant-permission reader write k
        role grant-permission reader readwrite j --prefix
        role grant-permission reader sing a
        role grant-permission nobody read a
        role get reader
        role get reader -w json
        role get reader -w fields
        role get nobody
        role list
        user grant-role ann reader
        user grant-role ann nothing
        user grant-role nobody reader
        user get ann --detail
        user get ann -w json
        role revoke-permission reader a zz
        role revoke-permission reader a zz
        role revoke-permission reader j --prefix
        role get reader
        user revoke-role ann reader
        user revoke-role ann reader
        user delete eve
        user delete eve
        role delete reader
        role delete reader
        user list -w fields
        role list -w json
        user list -w table
    """,
    "auth": """
        3.5: auth status
        auth enable
        user add root:pw
        user add ann:x
        role add part
        role grant-permission part readwrite a k
        user grant-role ann part
        role add root
        user grant-role root root
        auth enable
        auth enable
        get a
        put a 9
        user list
        3.5: auth status
        --user=root:pw auth status
        --user=root:pw get "" --from-key
        --user=root:no get a
        --user=nobody:no get a
        --user=ann --password=x get a k
        --user=ann:x put a 5
        --user=ann:x put z 5
        --user=ann:x get "" --from-key
        --user=ann:x get a zz
        --user=ann:x del a zz
        --user=ann:x user list
        --user=ann:x user get ann
        --user=ann:x role get part
        --user=ann:x compaction 2 => esp: a compaction
        --user=ann:x lease grant 100
        --user=ann:x put a 6 --lease=$LEASE
        --user=ann:x lease timetolive $LEASE --keys
        --user=ann:x lease revoke $LEASE
        ! \\nput a 1\\n\\n\\n| --user=ann:x txn
        ! \\nget a\\nget z\\n\\n\\n| --user=ann:x txn
        --user=ann:x get a -w json
        --user=ann:x put a 8
        [3] --user=ann:x watch a c --rev=$REV+1
        --user=ann:x watch a z
        watch a
        --user=root:pw endpoint status =~ .*, true, false, .*
        --user=root:pw endpoint health
        endpoint health
        --user=ann:x member list =~ .*, started, esp, .*
        --user=ann:x alarm list
        --user=ann:x auth disable
        --user=root:pw user delete root
        --user=root:pw user revoke-role root root
        --user=root:pw auth disable
        get "" --from-key
        --user=root:pw get a
    """,
}

FEW: Final = ("txn", "lease", "alarm", "member")
"""The scripts that CI runs with older etcds and their etcdctl, too."""
FEW_MIXED: Final = ("alarm", "endpoint", "stream")
"""Those with which CI tries shards of different versions: esp merges their answers."""
