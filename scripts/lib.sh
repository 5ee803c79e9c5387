# shellcheck shell=bash
# Sourced by the scripts beside it.

# A cargo installed by rustup is found although the login shell has not been started again.
case ":$PATH:" in
*":$HOME/.cargo/bin:"*) ;;
*) PATH=$PATH:$HOME/.cargo/bin ;;
esac

die() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

# Milliseconds since the epoch.
now_ms() { echo $((${EPOCHREALTIME/[.,]/} / 1000)); }

# seconds_since START_MS: with one decimal.
seconds_since() {
    local ms=$(($(now_ms) - $1))
    printf '%d.%d s' $((ms / 1000)) $((ms % 1000 / 100))
}

# authorise: asks for sudo's password now, if there is one to ask for. Stages run in the background, where nobody can be
# asked, and may have packages to install; each of them renews the permission.
authorised=
authorise() {
    if [ "$(id -u)" = 0 ] || ! command -v sudo >/dev/null; then return; fi
    if ! sudo -n true 2>/dev/null; then
        echo "Packages may have to be installed later on, for which sudo wants your password now."
        sudo -v
    fi
    authorised=1
}

stage_pid=
# Ends the stage that runs, if any; for a trap.
stop_stage() {
    [ -z "$stage_pid" ] || kill "$stage_pid" 2>/dev/null || true
}

# stage NAME LIMIT LOG COMMAND...: runs the command for at most LIMIT seconds with its output in LOG. Shows what it is
# at while it runs and how long it took, and the end of the log if it fails, whose status is returned.
stage() {
    local name=$1 limit=$2 log=$3 begin shown status=0
    shift 3
    if [ -n "$authorised" ]; then sudo -n -v 2>/dev/null || true; fi
    begin=$(now_ms)
    shown=$begin
    # timeout puts the command into a process group of its own and ends the whole of it.
    timeout --kill-after=10 "$limit" "$@" >"$log" 2>&1 </dev/null &
    stage_pid=$!
    [ ! -t 1 ] || printf '\r\e[K%-28s ...' "$name"
    while kill -0 "$stage_pid" 2>/dev/null; do
        sleep 0.2
        if [ -t 1 ]; then
            printf '\r\e[K%-28s %8s  %.60s' "$name" "$(seconds_since "$begin")" "$(last_line "$log")"
        elif (($(now_ms) - shown > 30000)); then
            printf '%-28s %8s  %.60s\n' "$name" "$(seconds_since "$begin")" "$(last_line "$log")"
            shown=$(now_ms)
        fi
    done
    wait "$stage_pid" || status=$?
    stage_pid=
    [ ! -t 1 ] || printf '\r\e[K'
    case $status in
    0) printf '%-28s %8s\n' "$name" "$(seconds_since "$begin")" ;;
    124 | 137) printf '%-28s %8s  FAILED: not done within %s s\n' "$name" "$(seconds_since "$begin")" "$limit" ;;
    *) printf '%-28s %8s  FAILED with status %s\n' "$name" "$(seconds_since "$begin")" "$status" ;;
    esac
    if [ "$status" != 0 ]; then
        # What failed may be far from the end.
        { grep -E '\.\.\. FAILED$|^FAIL |panicked at|^error' "$log" | head -n 20 || true; echo ...; tail -n 40 "$log"; } |
            sed 's/^/    /'
        echo "    (all of it: $log)"
    fi
    return "$status"
}

# The last line of a log as it stands, control characters taken out.
last_line() { tail -c 400 "$1" | tr '\r' '\n' | sed '/^[[:space:]]*$/d' | tail -n 1 | tr -cd '[:print:]'; }

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "this needs root and there is no sudo; as root, run: $*"
    fi
}

have_package() { [[ $(dpkg-query -W -f='${Status}' "$1" 2>/dev/null) == 'install ok installed' ]]; }

# install_packages PURPOSE PACKAGE...: installs those that are missing and says so.
install_packages() {
    local purpose=$1 missing=() name
    shift
    for name in "$@"; do have_package "$name" || missing+=("$name"); done
    ((${#missing[@]})) || return 0
    command -v apt-get >/dev/null || die "$purpose: please install what Debian calls ${missing[*]}"
    echo "$(basename "$0"): installing ${missing[*]}, $purpose" >&2
    apt-cache show "${missing[@]}" >/dev/null 2>&1 || as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

readonly MUSL_TARGET=x86_64-unknown-linux-musl
has_musl_gcc() { command -v musl-gcc >/dev/null; }
has_musl_std() { [ -d "$(rustc --print sysroot 2>/dev/null)/lib/rustlib/$MUSL_TARGET" ]; }

target_dir=${CARGO_TARGET_DIR:-target}
# choose_target: what all is built for: musl, as .cargo/config.toml says, or the GNU C library where what that takes is not
# installed; and where cargo puts the program.
choose_target() {
    if [ -z "${CARGO_BUILD_TARGET:-}" ]; then
        if has_musl_gcc && has_musl_std; then
            CARGO_BUILD_TARGET=$MUSL_TARGET
        else
            CARGO_BUILD_TARGET=x86_64-unknown-linux-gnu
            echo "$(basename "$0"): building with the GNU C library: some 0.3 ms slower to start. ./scripts/setup installs musl" >&2
        fi
    fi
    export CARGO_BUILD_TARGET
    # shellcheck disable=SC2034 # used by those who source this
    release_binary=$target_dir/$CARGO_BUILD_TARGET/release/tandem
}

# copy_to_measure FLOOR: copies a floor and the program into a directory of the target's, $measured. What a linker has just
# written lies in the page cache in single pages, which take longer to map than those of a file that was copied or read.
copy_to_measure() {
    measured=$(realpath "$target_dir")/measured
    mkdir -p "$measured"
    cp "$target_dir/$1" "$measured/$1"
    cp "$release_binary" "$measured/tandem"
}

# built_guest FLAVOUR: whether scripts/build-guest has made it, which it then does again without installing anything.
built_guest() { [ -e "${TANDEM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tandem}/guest/$1/vmlinux" ]; }

# software_kvm: whether this host's KVM is software and its processor can run the ring3 guest, which then is the one that
# `tandem run` takes.
software_kvm() {
    [ -e /sys/module/kvm_pvm ] && grep -qw fsgsbase /proc/cpuinfo &&
        { { [ ! -e /sys/module/kvm_intel ] && [ ! -e /sys/module/kvm_amd ]; } || ! grep -qwE 'vmx|svm' /proc/cpuinfo; }
}
