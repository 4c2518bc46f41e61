# bash completion for esp; made by esp completion bash

_esp_paths() {
    compopt -o filenames 2>/dev/null
    mapfile -t COMPREPLY < <(compgen "$1" -- "$current")
}

_esp_words() {
    mapfile -t COMPREPLY < <(compgen -W "$1" -- "$current")
}

# What the config decides. $1: shards or keys.
_esp_live() {
    local config= number
    for ((number = 1; number < COMP_CWORD; number++)); do
        case ${COMP_WORDS[number]} in -c | --config) config=${COMP_WORDS[number + 1]} ;; esac
    done
    mapfile -t COMPREPLY < <(esp complete "$1" "$current" ${config:+"$config"} 2>/dev/null)
}

_esp() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} command= word
    COMPREPLY=()
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case $command/$word in
            "/serve") command="serve" ;;
            "/route") command="route" ;;
            "/check") command="check" ;;
            "/config") command="config" ;;
            "config/check") command="config check" ;;
            "config/show") command="config show" ;;
            "config/example") command="config example" ;;
            "config/schema") command="config schema" ;;
            "/reload") command="reload" ;;
            "/top") command="top" ;;
            "/exec") command="exec" ;;
            "/export") command="export" ;;
            "/import") command="import" ;;
            "/bench") command="bench" ;;
            "/lease-sync") command="lease-sync" ;;
            "/map") command="map" ;;
            "map/init") command="map init" ;;
            "map/show") command="map show" ;;
            "map/history") command="map history" ;;
            "map/apply") command="map apply" ;;
            "map/fence") command="map fence" ;;
            "map/remove") command="map remove" ;;
            "map/finish") command="map finish" ;;
            "/move") command="move" ;;
            "/plan") command="plan" ;;
            "/completion") command="completion" ;;
            "/help") command="help" ;;
            "/version") command="version" ;;
        esac
    done
    case "$command $previous" in
        " --color") _esp_words 'auto always never'; return ;;
        "serve -c" | "serve --config") _esp_paths -f; return ;;
        "serve --local") :; return ;;
        "serve --data-dir") _esp_paths -d; return ;;
        "serve --listen") :; return ;;
        "serve --log-format") _esp_words 'text json'; return ;;
        "serve --log-level") _esp_words 'debug info warning error'; return ;;
        "serve --workers") :; return ;;
        "serve --color") _esp_words 'auto always never'; return ;;
        "route --range-end") _esp_live keys; return ;;
        "route --txn") _esp_paths -f; return ;;
        "route -o" | "route --output") _esp_words 'table json'; return ;;
        "route -c" | "route --config") _esp_paths -f; return ;;
        "route --color") _esp_words 'auto always never'; return ;;
        "check -c" | "check --config") _esp_paths -f; return ;;
        "check --output" | "check -o") _esp_words 'table wide json'; return ;;
        "check --proxy") :; return ;;
        "check --cacert") _esp_paths -f; return ;;
        "check --cert") _esp_paths -f; return ;;
        "check --key") _esp_paths -f; return ;;
        "check --watch") :; return ;;
        "check --fix-strays") _esp_words 'move delete'; return ;;
        "check --color") _esp_words 'auto always never'; return ;;
        "config --color") _esp_words 'auto always never'; return ;;
        "config check -o" | "config check --output") _esp_words 'table json'; return ;;
        "config check -c" | "config check --config") _esp_paths -f; return ;;
        "config check --color") _esp_words 'auto always never'; return ;;
        "config show --listen") :; return ;;
        "config show --workers") :; return ;;
        "config show --log-format") _esp_words 'text json'; return ;;
        "config show --log-level") _esp_words 'debug info warning error'; return ;;
        "config show -o" | "config show --output") _esp_words 'table json'; return ;;
        "config show -c" | "config show --config") _esp_paths -f; return ;;
        "config show --color") _esp_words 'auto always never'; return ;;
        "config example --color") _esp_words 'auto always never'; return ;;
        "config schema --color") _esp_words 'auto always never'; return ;;
        "reload -c" | "reload --config") _esp_paths -f; return ;;
        "reload -o" | "reload --output") _esp_words 'table json'; return ;;
        "reload --control") _esp_paths -f; return ;;
        "reload --color") _esp_words 'auto always never'; return ;;
        "top -c" | "top --config") _esp_paths -f; return ;;
        "top -i" | "top --interval") :; return ;;
        "top -n" | "top --count") :; return ;;
        "top --cacert") _esp_paths -f; return ;;
        "top --cert") _esp_paths -f; return ;;
        "top --key") _esp_paths -f; return ;;
        "top -o" | "top --output") _esp_words 'table json'; return ;;
        "top --color") _esp_words 'auto always never'; return ;;
        "exec -c" | "exec --config") _esp_paths -f; return ;;
        "exec --color") _esp_words 'auto always never'; return ;;
        "export --range-end") _esp_live keys; return ;;
        "export --to") _esp_paths -f; return ;;
        "export --resume") _esp_paths -f; return ;;
        "export --verify") _esp_paths -f; return ;;
        "export --endpoint") :; return ;;
        "export --cacert") _esp_paths -f; return ;;
        "export --cert") _esp_paths -f; return ;;
        "export --key") _esp_paths -f; return ;;
        "export --user") :; return ;;
        "export --password-file") _esp_paths -f; return ;;
        "export -o" | "export --output") _esp_words 'table json'; return ;;
        "export -c" | "export --config") _esp_paths -f; return ;;
        "export --color") _esp_words 'auto always never'; return ;;
        "import --at-once") :; return ;;
        "import --endpoint") :; return ;;
        "import --cacert") _esp_paths -f; return ;;
        "import --cert") _esp_paths -f; return ;;
        "import --key") _esp_paths -f; return ;;
        "import --user") :; return ;;
        "import --password-file") _esp_paths -f; return ;;
        "import -o" | "import --output") _esp_words 'table json'; return ;;
        "import -c" | "import --config") _esp_paths -f; return ;;
        "import --color") _esp_words 'auto always never'; return ;;
        "bench --load") _esp_words 'put range txn watch keepalive'; return ;;
        "bench --connections") :; return ;;
        "bench --streams") :; return ;;
        "bench --seconds") :; return ;;
        "bench --rounds") :; return ;;
        "bench --warm-up") :; return ;;
        "bench --keys") :; return ;;
        "bench --value-bytes") :; return ;;
        "bench --shard") _esp_live shards; return ;;
        "bench --plot") _esp_paths -f; return ;;
        "bench --cacert") _esp_paths -f; return ;;
        "bench --cert") _esp_paths -f; return ;;
        "bench --key") _esp_paths -f; return ;;
        "bench --user") :; return ;;
        "bench --password-file") _esp_paths -f; return ;;
        "bench -o" | "bench --output") _esp_words 'table json'; return ;;
        "bench -c" | "bench --config") _esp_paths -f; return ;;
        "bench --color") _esp_words 'auto always never'; return ;;
        "lease-sync --only-on") _esp_live shards; return ;;
        "lease-sync --skew") :; return ;;
        "lease-sync --concurrency") :; return ;;
        "lease-sync -o" | "lease-sync --output") _esp_words 'table json'; return ;;
        "lease-sync -c" | "lease-sync --config") _esp_paths -f; return ;;
        "lease-sync --color") _esp_words 'auto always never'; return ;;
        "map --color") _esp_words 'auto always never'; return ;;
        "map init -o" | "map init --output") _esp_words 'table json'; return ;;
        "map init -c" | "map init --config") _esp_paths -f; return ;;
        "map init --color") _esp_words 'auto always never'; return ;;
        "map show -o" | "map show --output") _esp_words 'table json'; return ;;
        "map show -c" | "map show --config") _esp_paths -f; return ;;
        "map show --color") _esp_words 'auto always never'; return ;;
        "map history -o" | "map history --output") _esp_words 'table json'; return ;;
        "map history -c" | "map history --config") _esp_paths -f; return ;;
        "map history --color") _esp_words 'auto always never'; return ;;
        "map apply -o" | "map apply --output") _esp_words 'table json'; return ;;
        "map apply --color") _esp_words 'auto always never'; return ;;
        "map fence -o" | "map fence --output") _esp_words 'table json'; return ;;
        "map fence -c" | "map fence --config") _esp_paths -f; return ;;
        "map fence --color") _esp_words 'auto always never'; return ;;
        "map remove -o" | "map remove --output") _esp_words 'table json'; return ;;
        "map remove -c" | "map remove --config") _esp_paths -f; return ;;
        "map remove --color") _esp_words 'auto always never'; return ;;
        "map finish -o" | "map finish --output") _esp_words 'table json'; return ;;
        "map finish -c" | "map finish --config") _esp_paths -f; return ;;
        "map finish --color") _esp_words 'auto always never'; return ;;
        "move --prefix") :; return ;;
        "move --to") _esp_live shards; return ;;
        "move --max-pause") :; return ;;
        "move --margin") :; return ;;
        "move --purge-rate") :; return ;;
        "move -o" | "move --output") _esp_words 'table json'; return ;;
        "move -c" | "move --config") _esp_paths -f; return ;;
        "move --color") _esp_words 'auto always never'; return ;;
        "plan --shards") :; return ;;
        "plan --by") _esp_words 'keys bytes writes'; return ;;
        "plan --depth") :; return ;;
        "plan --from") :; return ;;
        "plan --watch") :; return ;;
        "plan --separator") :; return ;;
        "plan --keep") :; return ;;
        "plan --divide") :; return ;;
        "plan --to") _esp_paths -f; return ;;
        "plan --cacert") _esp_paths -f; return ;;
        "plan --cert") _esp_paths -f; return ;;
        "plan --key") _esp_paths -f; return ;;
        "plan --user") :; return ;;
        "plan --password-file") _esp_paths -f; return ;;
        "plan -o" | "plan --output") _esp_words 'table json'; return ;;
        "plan -c" | "plan --config") _esp_paths -f; return ;;
        "plan --color") _esp_words 'auto always never'; return ;;
        "completion --color") _esp_words 'auto always never'; return ;;
        "help --color") _esp_words 'auto always never'; return ;;
        "version -o" | "version --output") _esp_words 'table json'; return ;;
        "version --color") _esp_words 'auto always never'; return ;;
    esac
    case $command in
        '') _esp_words 'serve route check config reload top exec export import bench lease-sync map move plan completion help version --version -v --verbose -q --quiet --color -h --help' ;;
        'serve') _esp_words '-c --config --local --tls --data-dir --listen --log-format --log-level --workers --takeover -v --verbose -q --quiet --color -h --help' ;;
        'route') case $current in -*) _esp_words '--prefix --from-key --range-end --each --explain --txn -o --output --hex --base64 -c --config -v --verbose -q --quiet --color -h --help' ;; *) _esp_live keys ;; esac ;;
        'check') _esp_words '-c --config --output -o --keys --proxy --cacert --cert --key --watch --fix-strays --apply --yes -v --verbose -q --quiet --color -h --help' ;;
        'config') _esp_words 'check show example schema -v --verbose -q --quiet --color -h --help' ;;
        'config check') case $current in -*) _esp_words '-o --output -c --config -v --verbose -q --quiet --color -h --help' ;; *) _esp_paths -f ;; esac ;;
        'config show') case $current in -*) _esp_words '--listen --workers --log-format --log-level -o --output -c --config -v --verbose -q --quiet --color -h --help' ;; *) _esp_paths -f ;; esac ;;
        'config example') _esp_words '-v --verbose -q --quiet --color -h --help' ;;
        'config schema') _esp_words '-v --verbose -q --quiet --color -h --help' ;;
        'reload') _esp_words '-c --config -o --output --check --force --control -v --verbose -q --quiet --color -h --help' ;;
        'top') _esp_words '-c --config -i --interval -n --count --cacert --cert --key -o --output -v --verbose -q --quiet --color -h --help' ;;
        'exec') case $current in -*) _esp_words '-c --config -v --verbose -q --quiet --color -h --help' ;; *) _esp_live shards ;; esac ;;
        'export') case $current in -*) _esp_words '--prefix --from-key --range-end --hex --base64 --to --resume --verify --each --endpoint --cacert --cert --key --user --password-file -o --output -c --config -v --verbose -q --quiet --color -h --help' ;; *) _esp_live keys ;; esac ;;
        'import') case $current in -*) _esp_words '--overwrite --skip-existing --resume --at-once --no-leases --same-leases --endpoint --cacert --cert --key --user --password-file -o --output -c --config -v --verbose -q --quiet --color -h --help' ;; *) _esp_paths -f ;; esac ;;
        'bench') _esp_words '--load --connections --streams --seconds --rounds --warm-up --keys --value-bytes --shard --plot --cacert --cert --key --user --password-file -o --output -c --config -v --verbose -q --quiet --color -h --help' ;;
        'lease-sync') _esp_words '--apply --prune --only-on --yes --skew --concurrency -o --output -c --config -v --verbose -q --quiet --color -h --help' ;;
        'map') _esp_words 'init show history apply fence remove finish -v --verbose -q --quiet --color -h --help' ;;
        'map init') _esp_words '--yes -o --output -c --config -v --verbose -q --quiet --color -h --help' ;;
        'map show') _esp_words '-o --output -c --config -v --verbose -q --quiet --color -h --help' ;;
        'map history') _esp_words '-o --output -c --config -v --verbose -q --quiet --color -h --help' ;;
        'map apply') case $current in -*) _esp_words '--yes -o --output -v --verbose -q --quiet --color -h --help' ;; *) _esp_paths -f ;; esac ;;
        'map fence') case $current in -*) _esp_words '--yes -o --output -c --config -v --verbose -q --quiet --color -h --help' ;; *) _esp_live shards ;; esac ;;
        'map remove') _esp_words '--yes --while-served -o --output -c --config -v --verbose -q --quiet --color -h --help' ;;
        'map finish') _esp_words '-o --output -c --config -v --verbose -q --quiet --color -h --help' ;;
        'move') _esp_words '--prefix --to --resume --abort --hex --base64 --max-pause --margin --purge-rate --keep --with-locks --clear --experimental --yes -o --output -c --config -v --verbose -q --quiet --color -h --help' ;;
        'plan') _esp_words '--shards --by --depth --from --watch --separator --keep --divide --against --to --cacert --cert --key --user --password-file -o --output -c --config -v --verbose -q --quiet --color -h --help' ;;
        'completion') case $current in -*) _esp_words '-v --verbose -q --quiet --color -h --help' ;; *) _esp_words 'bash zsh fish' ;; esac ;;
        'help') _esp_words '-v --verbose -q --quiet --color -h --help' ;;
        'version') _esp_words '-o --output -v --verbose -q --quiet --color -h --help' ;;
    esac
}

complete -F _esp esp
