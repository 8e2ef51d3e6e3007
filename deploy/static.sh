#!/usr/bin/env bash
# One file without libraries: deploy/static.sh builds `consortia` with glibc, TLS and SQLite in it, for this machine's kind of
# processor, and puts it into target/out by its version and target, with its checksum in SHA256SUMS beside it. `deploy/static.sh try`, as
# root, then lets it work where there is nothing else: a server, a site and a run in a root with the program, its records, /proc,
# /dev/null and the two files through which names are looked up.
#
# It needs glibc 2.34 or newer to build, whose static library looks names up by itself. The second flag is for the entropy of keys
# and noise: a program that is linked like this finds no getrandom() by its name, and would read /dev/urandom instead.
set -euo pipefail
cd "$(dirname "$0")/.."

target=$(uname -m)-unknown-linux-gnu
built=${CARGO_TARGET_DIR:-target}/$target/dist/consortia
out=${CARGO_TARGET_DIR:-target}/out

build() {
    RUSTFLAGS='-C target-feature=+crt-static --cfg getrandom_backend="linux_getrandom"' \
        cargo build --profile dist --locked --package consortia-cli --bin consortia --target "$target"
    if readelf --program-headers --dynamic "$built" | grep --extended-regexp 'INTERP|NEEDED'; then
        echo "error: $built asks for a library" >&2
        exit 1
    fi
    version=$("$built" --version | cut -d ' ' -f 2)
    name=consortia-$version-$target
    mkdir -p "$out"
    # A program that is at work is not written over, but replaced.
    install -m 755 "$built" "$out/$name.part"
    mv "$out/$name.part" "$out/$name"
    # One line a file, those of other versions and targets too.
    (cd "$out" && sha256sum consortia-*-linux-gnu >SHA256SUMS)
    echo "$out/$name"
}

try() {
    root=$(mktemp -d)
    mkdir "$root"/{proc,dev,etc,tmp,records}
    cp "$built" "$root/consortia"
    cp examples/data/heart_disease.csv "$root/records/"
    echo '127.0.0.1 localhost fed.example.org' >"$root/etc/hosts"
    touch "$root/dev/null"
    trap 'kill $(jobs -p) || true; wait || true; umount "$root/proc" "$root/dev/null"; rm -rf "$root"' EXIT
    mount --types proc proc "$root/proc"
    mount --bind /dev/null "$root/dev/null"
    alone() { chroot "$root" /consortia "$@"; }

    alone demo
    alone server init /fed --name fed.example.org --listen 127.0.0.1:24433
    chroot "$root" /consortia server run /fed --admin-listen 127.0.0.1:0 >"$root/server.log" &
    until grep --quiet listening "$root/server.log"; do sleep 0.1; done
    line=$(alone invite create cleveland --dir /fed | grep --only-matching 'consortia-invite-[^ ]*')
    alone site join "$line" --dir /site --data /records/heart_disease.csv --policy plain
    alone site check /site/site.toml
    chroot "$root" /consortia site run /site/site.toml >"$root/site.log" &
    sed -e '/^\[simulation/,$d' -e 's/^clients_min = .*/clients_min = 1/' -e 's/^quorum = .*/quorum = 1/' \
        examples/heart.toml >"$root/plan.toml"
    alone run submit /plan.toml --dir /fed --watch
}

case ${1:-build} in
build) build ;;
try) try ;;
*) sed --quiet '2,6s/^# //p' "$0" >&2 && exit 2 ;;
esac
